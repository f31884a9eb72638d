"""`sifkit check`: facts gathered once, then rules that are pure functions of them."""
