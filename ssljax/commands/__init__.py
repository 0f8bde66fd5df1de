"""What each command of `ssljax` does; imported when it is called, so that `--help` is quick."""
