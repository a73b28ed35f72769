"""What the page says about real photographs."""

PHOTOGRAPHS = """## Real photographs

Not measured: it needs a GPU, and none was at hand. What is there is the way to do it,

    python -m benchmarks.bootstrap --real FLICKR8K --device cuda --work DIR --json FILE

with the same arms on Flickr8k (squashed to 128 px): 1,000 training photographs with their five
captions are the human pairs, the other 4,998 the web with one text each, half of them another
photograph's caption or boilerplate. It gives the filter's AUC on these known labels, recall@1, 5
and 10 and CIDEr on the 1,000 dev photographs, and captions of 20 of them with their ITM
probabilities. With `--short` it runs on 72 photographs and a few steps on a CPU, which shows that
it runs and nothing else.
"""
