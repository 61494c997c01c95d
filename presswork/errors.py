"""Every error presswork raises on purpose.

PressworkError
├── ConfigError            (ValueError)    a setting, flag, environment value or config file is wrong
├── CheckpointError        (ValueError)    a model folder or weight file cannot be used
├── ModelNotFoundError     (LookupError)   no embedded model, folder or Hub id answers to the name
├── RequestError           (ValueError)    a request asks for something malformed or out of range
│   ├── UnsupportedError                   well-formed, but this model or engine cannot do it
│   ├── ContextLengthError                 the prompt does not fit the context
│   ├── TemplateError                      the chat template refused the messages
│   └── ConstraintError                    a regex or schema that is malformed or uses what cannot be kept to
│       └── ConstraintTooLargeError        well-formed, but its automaton would be too large
├── QueueFullError         (RuntimeError)  the engine's queue bound is reached; try again later
├── EngineClosedError      (RuntimeError)  the engine was closed before or while the request ran
├── DataError              (ValueError)    training or evaluation data cannot be used
├── TrainingError          (RuntimeError)  a training run cannot go on
└── GenerationError        (RuntimeError)  a request failed while it ran
    ├── NonFiniteError                     the model produced NaN or infinity for this request
    └── OutOfMemoryError                   the key-value memory for this request cannot be had

Each message is one line: what was wrong, what was given, what is accepted, what to do.
"""


class PressworkError(Exception):
    """Base of every deliberate error."""


class ConfigError(PressworkError, ValueError):
    """A setting, flag, environment value or configuration file is wrong."""


class CheckpointError(PressworkError, ValueError):
    """A model folder or weight file cannot be used."""


class ModelNotFoundError(PressworkError, LookupError):
    """No embedded model, folder or Hub id answers to the name."""


class RequestError(PressworkError, ValueError):
    """A request asks for something malformed or out of range."""


class UnsupportedError(RequestError):
    """A well-formed request that this model or engine cannot serve."""


class ContextLengthError(RequestError):
    """The prompt does not fit the context.

    Args: num_tokens: of the prompt. max_context: positions there are.
    """

    def __init__(self, num_tokens: int, max_context: int):
        super().__init__(f"the prompt has {num_tokens} tokens and the context is {max_context}; shorten the prompt")
        self.num_tokens, self.max_context = num_tokens, max_context


class TemplateError(RequestError):
    """The chat template refused the messages."""


class ConstraintError(RequestError):
    """A regex or schema that is malformed or uses what cannot be kept to."""


class ConstraintTooLargeError(ConstraintError):
    """A regex or schema whose automaton would take more states or work than allowed."""


class QueueFullError(PressworkError, RuntimeError):
    """The engine's queue bound is reached: so many requests wait, and no more may."""

    def __init__(self, num_waiting: int, max_waiting: int):
        super().__init__(
            f"the queue is full: {num_waiting} requests wait and max_waiting is {max_waiting}; try again later"
        )


class EngineClosedError(PressworkError, RuntimeError):
    """The engine was closed before or while the request ran."""


class DataError(PressworkError, ValueError):
    """Training or evaluation data that cannot be used."""


class TrainingError(PressworkError, RuntimeError):
    """A training run cannot go on."""


class GenerationError(PressworkError, RuntimeError):
    """A request failed while it ran."""


class NonFiniteError(GenerationError):
    """The model produced NaN or infinity for this request."""


class OutOfMemoryError(GenerationError):
    """The key-value memory for this request cannot be had."""
