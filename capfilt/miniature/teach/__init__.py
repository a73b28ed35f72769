"""How the tiny BLIP that is shipped with the miniature web is trained and measured.

The recipe is BLIP's in small, shortened for two CPU cores:

1. sight: the vision transformer learns from labels what stands in each cell of the grid, as BLIP's
   starts from a supervised DeiT (arXiv:2201.12086, sec. 4.1);
2. captioning alone, of pictures with one thing and then of all, with the whole BLIP's parameters;
3. from there a captioner (LM) and a filter (ITC and ITM) are finetuned apart;
4. the filter's ITC projections learn to tell a copy of a picture from one much like it.

Two things are not BLIP's, because pictures and texts are made here and truth is known: the filter
also sees texts that are known to be false (`TextImageBatch.distractors`), and no pair that happens
to be true is ever used as a negative (`known_matches`). This is the only part of the miniature that
needs torch.
"""
