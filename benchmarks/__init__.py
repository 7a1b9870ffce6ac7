"""Peers side by side: many cotangents through one frozen network, timed against each other and the machine's limit."""
