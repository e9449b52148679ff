"""The study of memorization in language models: put into known neurons, found, deleted, and elicited again."""
