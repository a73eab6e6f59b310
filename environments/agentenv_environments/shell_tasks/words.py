"""The words names and contents are made of. None is part of another, so that a search finds exactly what was meant."""

from __future__ import annotations

_LIST = """
acorn agate alder amber anchor anvil apple apron aspen atlas autumn badger bamboo banjo basil
berry birch bison brass brook bucket cabin camel candle canoe canyon carrot cedar cello chalk
cherry cocoa comet coral crane daisy dawn desert dragon drum dusk eagle ebony elbow elder ember
engine falcon fern ferry flint flute forest galaxy ginger grape gravel hazel helmet heron honey
iris ivory jacket jade jaguar kiwi laurel lemon lentil lichen lilac lily linen locket lotus magnet
mango maple marble meadow melon mimosa mirror moss needle nickel nutmeg oasis oboe ocean olive
onyx opal orchid otter oyster peach pearl pebble pigeon planet plum poppy quail quiver radish
raven river rocket ruby sage satin silver summit swan tiger topaz tulip tundra turnip valley
violin walnut winter wolf zebra zinc
"""

WORDS: tuple[str, ...] = tuple(_LIST.split())

EXTENSIONS: tuple[str, ...] = ("txt", "md", "log", "csv")
