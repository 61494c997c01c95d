"""Python functions and plain technical English: corpus, tokenizer, model, evaluation."""
