"""The stages of one experiment in order: each writes files, leaves a completion marker and resumes there."""
