"""Whole studies as resumable jobs: a spec and a folder in, tables out, each part stored as soon as it is done."""
