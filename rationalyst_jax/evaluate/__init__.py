"""How good were the answers: tasks read questions and extract answers, grading compares, statistics bound."""
