"""Chats as text: messages, templates, and which tokens are in the loss."""
