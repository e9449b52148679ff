"""Memory against context: how much evidence turns a known fact, which heads and MLPs decide, and what moves it."""
