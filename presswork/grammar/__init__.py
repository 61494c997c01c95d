"""Languages that a text is held to: regexes, choices and JSON schemas, as bounded minimal automata over bytes."""
