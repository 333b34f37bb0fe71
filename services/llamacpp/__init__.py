"""Beside the road: the box, a small real model that comes with Chatlog, as a process of its own."""
