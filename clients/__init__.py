"""Asks an OpenAI-compatible endpoint, compares base against tuned, and writes the report."""
