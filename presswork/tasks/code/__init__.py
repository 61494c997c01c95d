"""Python functions and plain technical English: corpus, tokenizer, evaluation."""
