"""What memorization is measured by, in pipelines and language models."""
