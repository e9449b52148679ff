"""What was deleted is asked back by whoever may choose the input: embeddings of pipelines, soft prompts of models."""
