"""Serves a run and its base model behind one OpenAI-compatible endpoint."""
