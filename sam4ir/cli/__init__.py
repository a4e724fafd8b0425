"""The commands of sam4ir: `sam4ir train`, `sam4ir restore` and so on, a module each.

A command module is light: it imports what parses a command line, and the work only when it begins. So `--help` and
completion take a moment. It has two functions: `parser()` returns the command's parser, and `main(words)` runs the
command and returns its exit status.
"""
