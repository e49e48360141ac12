"""Every option, declared once; nothing here imports torch, so that the command line can read it for `--help`."""
