"""The shell: text in, keywords out, exit codes."""
