"""Payload types of the wire and the vocabulary that every room of the house shares.

Nothing here does I/O, holds keys or decides anything: frozen structs for what travels, strict
parsers for foreign bytes, and the errors that may leave in an answer.
"""
