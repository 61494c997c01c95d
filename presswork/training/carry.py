"""Canvases that go on from one training step to the next, as the sampler would take them.

C canvases, U of them in a step, L canvas, K listed tokens.

    draw ──▶ xt, belief ──training pass──▶ hidden ──reading, accept, renoise──▶ xt, belief of the next step

Uniform corruption shows a model noise over a clean text, and what it believed about that. Generation shows it its own
drafts, many steps deep. Carrying canvases trains on those, and costs no pass of its own: the pass that gives the loss
also gives the next draft. Gradients do not flow between steps.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from presswork.diffusion.sampler import DiffusionRules
from presswork.models.transformer import Transformer
from presswork.ops.vocab_head import read_vocab


class CarriedCanvases:
    """The walks of C canvases; each is somewhere between its first and its last denoise step.

    What a canvas believes is kept as probabilities of a few listed tokens, so that a task can put it through its own
    symmetries; what little weighs on other tokens is dropped.

    Args:
        alphabet: the K tokens that the task's texts are made of.
        rules: schedule and accept rule of the walks; a stop rule ends one.
    """

    def __init__(self, num: int, length: int, vocab_size: int, alphabet: Int[Tensor, "K"], rules: DiffusionRules):
        self._rules, self._vocab_size, self._alphabet = rules, vocab_size, alphabet
        self._temperatures = torch.tensor([rules.schedule.temperature(s) for s in range(rules.schedule.num_steps)])
        self.tokens = torch.zeros(num, length, dtype=torch.int64)
        self.probabilities = torch.zeros(num, length, alphabet.shape[0])
        self.steps = torch.zeros(num, dtype=torch.int64)

    def restart(self, chosen: Int[Tensor, "U"], generator: torch.Generator) -> None:
        """Put the chosen canvases back to uniform noise with nothing believed. Mutates the walks."""
        shape = (chosen.shape[0], self.tokens.shape[1])
        self.tokens[chosen] = torch.randint(0, self._vocab_size, shape, generator=generator)
        self.probabilities[chosen] = 0
        self.steps[chosen] = 0

    def belief(self, chosen: Int[Tensor, "U"], embedding: Float[Tensor, "V D"]) -> Float[Tensor, "U L D"]:
        """Soft embeddings of the chosen walks under the model's present embedding; zero in a first step."""
        with torch.no_grad():
            return self.probabilities[chosen].to(embedding.dtype) @ embedding[self._alphabet].cpu()

    @torch.no_grad()
    def advance(
        self,
        model: Transformer,
        hidden: Float[Tensor, "N D"],
        x0: Int[Tensor, "U L"],
        generator: torch.Generator,
        chosen: Int[Tensor, "U"],
    ) -> Bool[Tensor, "U"]:
        """Take the chosen walks one step on. Mutates the walks.

        Args:
            hidden: final hidden rows of the pass over their tokens and beliefs.
            x0: the clean canvases.
        Returns: which of them are over: out of steps, or certain of the right text.
        """
        num, length = x0.shape
        steps = self.steps[chosen]
        uniform = torch.rand(num * length, generator=generator, dtype=torch.float64)
        reading = read_vocab(
            hidden,
            model.head,
            softcap=model.config.final_logit_softcapping,
            temperature=self._temperatures[steps].repeat_interleave(length).to(hidden.device),
            uniform=uniform.to(hidden.device),
            token_ids=self._alphabet.expand(num * length, -1).to(hidden.device),
        )
        # The walks are kept on the CPU, where tasks put them through their symmetries.
        found = (reading.argmax, reading.sample, reading.entropy, reading.max_logprob)
        argmax, sample, entropy, max_logprob = (x.view(num, length).cpu() for x in found)
        accepted = self._rules.accept.accept(entropy, max_logprob)
        fresh = torch.randint(0, self._vocab_size, (num, length), generator=generator)
        assert reading.chosen_logprobs is not None
        self.tokens[chosen] = torch.where(accepted, sample, fresh)
        self.probabilities[chosen] = reading.chosen_logprobs.exp().view(num, length, -1).cpu()
        self.steps[chosen] = steps + 1
        over = steps + 1 >= self._rules.schedule.num_steps
        if self._rules.stop is not None:
            certain = entropy.mean(1) < self._rules.stop.confidence_threshold
            over |= certain & (argmax == x0).all(1)
        return over

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs."""
        return {"tokens": self.tokens, "probabilities": self.probabilities, "steps": self.steps}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from state(). Mutates the walks."""
        self.tokens, self.probabilities, self.steps = state["tokens"], state["probabilities"], state["steps"]
