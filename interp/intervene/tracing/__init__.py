"""The parts of causal tracing: corruptions, cells, roles of tokens, severed variants, many prompts, averages."""
