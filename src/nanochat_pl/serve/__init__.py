"""A trained model to talk to: conversations, the terminal, the server and its page, all over one engine."""
