"""Conversations with a trained model: the terminal, the server and its page all use one engine."""
