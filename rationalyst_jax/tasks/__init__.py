"""What a benchmark is: its questions, its gold answers, how an answer is found and graded."""
