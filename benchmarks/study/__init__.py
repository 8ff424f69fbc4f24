"""How well labels made from explanations meet human masks, over passes, classifiers and rules."""
