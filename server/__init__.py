"""Serves a run and its base model on one OpenAI-compatible endpoint: llama.cpp processes behind a thin gateway."""
