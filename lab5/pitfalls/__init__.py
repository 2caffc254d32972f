"""Eighteen mistakes of public solutions, their checks, and what they do."""
