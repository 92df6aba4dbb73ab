"""The report: what the experiments found, as one HTML file that needs nothing else.

`results` reads result files, a module per section makes figures and tables of them, `markup` writes HTML and `page`
puts the whole together. All but the reading is pure, and the same results give the same bytes.
"""
