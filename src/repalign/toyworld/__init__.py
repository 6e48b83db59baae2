"""The toy world: scenes with known latents, their images and captions, and small models of either.

`world.sample` makes scenes; `models.load` gives a trained model by its name (`recipes.NAMES`), training it where
it is not cached; `models.train_roster` trains many. Nothing here touches the network.
"""
