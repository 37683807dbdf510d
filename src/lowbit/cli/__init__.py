"""cli - argv -> one call. One file is one command, found by its file name; it computes nothing.

Contract of a file (`list_.py` is the command `list`; files that begin with "_" and main.py are no commands):
    its header's first line is its line in `lowbit --help`
    command(...) -> None    a function with typer annotations; imports what is heavy inside; has the option --json
An installed package adds a command by an entry point of the group `lowbit.cli`.
"""
