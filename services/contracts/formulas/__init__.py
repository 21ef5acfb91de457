"""Reading what people and models write as the answer of a mathematical question: LaTeX, plain text or Unicode.

`words` cleans and splits a text, `tree` holds what was read, `reader` reads, `units` knows what may follow a number.
Nothing is computed here: reading takes time linear in the text, whatever it says.
"""
