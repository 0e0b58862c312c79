"""One thin command per stage: parse the arguments, call the stage, print its table."""
