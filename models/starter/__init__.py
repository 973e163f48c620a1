"""The starter model: weights, tokenizer, chat template, and the script that made them."""
