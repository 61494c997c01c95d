// A board that fills itself.

import { $, element, onSubmit, settings } from "./app.js";
import { send } from "./api.js";
import { report, shade } from "./canvas.js";

// The one everybody knows, then three from presswork.tasks.sudoku.generate(3, 7, Clues((32, 34))).
const EXAMPLES = [
  "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79",
  "...3...8.9...71..5.35..2....96..42...2.85..1.8.....4.3.874..5..5...96..23.9.28..1",
  "..475..9153...6.47..6.....3.57.1.2.8..3.92.5.4...6..3.7.....9..842.7.3...91.8....",
  "..135.....832..45.....68...178.4...6.6...9.3......6714..5.9.1...176.....4....259.",
];

export function setUpSudoku() {
  const cells = [];
  let example = 0;
  for (let row = 0; row < 9; row++) {
    const line = element("tr");
    for (let column = 0; column < 9; column++) {
      const cell = element("input", { inputMode: "numeric", maxLength: 1, autocomplete: "off" });
      cell.setAttribute("aria-label", `row ${row + 1}, column ${column + 1}`);
      const place = cells.length;
      cell.addEventListener("focus", () => cell.select());
      cell.addEventListener("input", () => {
        cell.value = cell.value.replace(/[^1-9]/g, "");
        cell.className = cell.value ? "given" : "";
      });
      cell.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 9, ArrowUp: -9 }[event.key];
        if (step === undefined) return;
        event.preventDefault();
        cells[(place + step + 81) % 81].focus();
      });
      cells.push(cell);
      line.append(element("td", {}, cell));
    }
    $("board").tBodies[0].append(line);
  }

  const put = (puzzle) => {
    cells.forEach((cell, i) => {
      const digit = puzzle[i] >= "1" && puzzle[i] <= "9" ? puzzle[i] : "";
      cell.value = digit;
      cell.className = digit ? "given" : "";
    });
    $("sudoku-stats").replaceChildren();
  };
  const isGiven = (cell) => cell.classList.contains("given");

  /** Digits and entropies of a text of rows; what is no digit takes a cell too, unless it is a space. */
  const draw = (pairs) => {
    pairs.slice(0, 81).forEach(([letter, entropy], i) => {
      if (isGiven(cells[i])) return;
      cells[i].value = letter >= "1" && letter <= "9" ? letter : "";
      cells[i].className = `n${shade(entropy)}`;
    });
  };
  const pairsOf = (pieces) => pieces.flatMap(([text, entropy]) => [...text].filter((c) => /\S/.test(c)).map((c) => [c, entropy]));

  const markClashes = () => {
    let num = 0;
    cells.forEach((cell, i) => {
      const peers = cells.filter((other, j) => {
        const sameRow = Math.floor(i / 9) === Math.floor(j / 9);
        const sameColumn = i % 9 === j % 9;
        const sameBox = Math.floor(i / 27) === Math.floor(j / 27) && Math.floor((i % 9) / 3) === Math.floor((j % 9) / 3);
        return i !== j && (sameRow || sameColumn || sameBox);
      });
      const isClash = !cell.value || peers.some((other) => other.value === cell.value);
      cell.classList.toggle("clash", isClash);
      num += isClash;
    });
    return num;
  };

  $("sudoku-example").addEventListener("click", () => put(EXAMPLES[(example = (example + 1) % EXAMPLES.length)]));
  $("sudoku-clear").addEventListener("click", () => put(""));
  put(EXAMPLES[0]);

  onSubmit($("sudoku-form"), async (signal) => {
    const models = [...$("model").options].map((option) => option.value);
    const model = models.find((name) => name === "sudoku") ?? settings().model;
    cells.forEach((cell) => {
      if (!isGiven(cell)) cell.value = "";
    });
    const puzzle = cells.map((cell) => cell.value || ".").join("");
    const view = {
      frames: [], written: "", reason: null,
      frame: (frame) => {
        view.frames.push(frame);
        draw(pairsOf(frame.pieces));
      },
      text: (piece) => (view.written += piece),
      reasoning: () => {},
      call: () => {},
      end: (reason, usage, timings) => Object.assign(view, { reason, usage, timings }),
    };
    $("sudoku-stats").replaceChildren();
    const { max_denoising_steps, seed } = settings();
    await send({ model, max_denoising_steps, seed, messages: [{ role: "user", content: puzzle }] }, signal, view);
    const show = (place) => draw(view.frames[place] ? pairsOf(view.frames[place].pieces) : pairsOf([[view.written, 0]]));
    show(view.frames.length);
    const wrong = markClashes();
    const verdict = wrong ? `${wrong} cells break the rules: try another seed, or more steps.` : "Solved: every row, column and box has each digit once.";
    $("sudoku-stats").replaceChildren(element("p", { className: wrong ? "failed" : "", textContent: verdict }), report(view, show));
  });
}
