"""A target behind a server: it is asked over HTTP for the rows of texts, once, and what it answered is kept.

``questions`` what is asked, what an answer is, and what was answered and spent, permanently · ``forms`` how a
question is put and an answer is read · ``client`` one request: budget, retries, refusals · ``selftest`` whether the
server does what is needed, and is still the same model · ``remote`` the member, which asks many questions at once.
"""
