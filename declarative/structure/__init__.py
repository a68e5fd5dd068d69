"""What is known about H and A: operators, which multiply and solve with few numbers, and tags, which say what to form."""
