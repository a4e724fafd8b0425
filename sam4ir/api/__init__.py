"""The Python interface: what `import sam4ir` offers, by the names that sam4ir/__init__.py lists."""
