"""Words of made-up titles, by genre, so that a person can judge what a model recommends."""

import numpy as np

# Genre -> words that come first in a title, and words that come after them. No word occurs twice.
WORDS = {
    "space": (
        "silent orbital stellar lunar cosmic solar distant frozen robotic alien galactic nebular "
        "martian astral quantum weightless infinite binary photon outer",
        "dust station signal comet rocket eclipse planet voyage colony satellite asteroid android "
        "crater horizon probe gravity telescope meteor pulsar astronaut",
    ),
    "romance": (
        "tender secret summer velvet parisian foolish second sweet crimson endless whispered "
        "borrowed moonlit bashful faithful wedding honeymoon forever midnight rosy",
        "heart kiss letter promise valentine embrace sweetheart bride serenade waltz proposal "
        "longing bouquet darling courtship devotion cupid rendezvous reunion vow",
    ),
    "western": (
        "dusty lonesome dry outlaw painted wild lawless rusty prairie arizona texan branded "
        "saddled sunburnt nameless gunpowder buffalo dead cactus frontier",
        "canyon rider sheriff saloon rodeo mustang gunfight ranch bandit stagecoach holster cowboy "
        "gulch marshal cattle tumbleweed duel mesa spur railroad",
    ),
    "horror": (
        "haunted crawling cursed bloody hollow screaming undead rotten grim nightly buried pale "
        "creeping possessed sinister shrieking spectral unholy dreadful withered",
        "cellar ghost grave coffin vampire witch scarecrow crypt attic werewolf skull zombie tomb "
        "ritual phantom asylum shroud poltergeist fang nightmare",
    ),
    "comedy": (
        "clumsy crazy awkward silly lousy accidental grumpy ridiculous cheerful lazy nosy "
        "reluctant ticklish hopeless goofy wacky noisy forgetful unlucky suburban",
        "uncle neighbor butler holiday wedlock roommate pajamas mustache circus babysitter prank "
        "landlord banana grandma goldfish chauffeur dentist pickle barbecue vacation",
    ),
    "war": (
        "brave fallen armored besieged northern desperate iron wounded loyal doomed burning allied "
        "retreating gallant ruined muddy captured smoking decorated forgotten",
        "battalion trench bridge sergeant bunker convoy regiment siege medal armistice grenade "
        "cavalry infantry bombardier barracks offensive bugle deserter submarine outpost",
    ),
    "crime": (
        "crooked stolen guilty double hidden dirty smuggled ruthless blackmailed anonymous forged "
        "downtown perfect poisoned corrupt unsolved cold marked slippery shady",
        "heist detective alibi witness verdict ransom gangster burglar suspect ledger inspector "
        "safecracker motive jury informant pickpocket confession fingerprint mobster loot",
    ),
    "fantasy": (
        "enchanted elven ancient golden mythical whispering crystal magic winged emerald prophetic "
        "mystic eternal ivory shimmering legendary hexed druidic unicorn arcane",
        "dragon kingdom sword wizard castle goblin prophecy crown amulet sorcerer dwarf talisman "
        "oracle realm griffin potion spell throne quest fairy",
    ),
    "music": (
        "electric acoustic rhythmic harmonic brassy melodic jazzy backstage unplugged platinum "
        "orchestral swinging offbeat bluesy operatic restless stereo syncopated humming choral",
        "guitar symphony trumpet ballad encore drummer concert melody violin quartet saxophone "
        "nightclub maestro chorus piano overture radio microphone tambourine rhapsody",
    ),
    "sport": (
        "final undefeated rookie heavyweight olympic injured sudden championship varsity barefoot "
        "muscular sweaty amateur winning relentless national underdog winded fastest extra",
        "goal marathon boxer stadium pitcher trophy coach referee sprint quarterback hurdle league "
        "dugout goalkeeper knockout skater medley slalom javelin racquet",
    ),
    "sea": (
        "stormy sunken salty drifting deep coral uncharted pacific shipwrecked tidal briny "
        "seaworthy windward foggy barnacled arctic turquoise sailing harpooned marooned",
        "anchor lighthouse pirate captain reef island harbor mermaid whale compass galleon lagoon "
        "schooner shark sailor current treasure mutiny squall mast",
    ),
    "animals": (
        "furry howling hungry playful tame stray spotted nocturnal migrating feathered curious "
        "gentle roaming purring striped woolly snowy grazing clever orphaned",
        "wolf bear falcon otter elephant puppy lion kitten stallion penguin fox owl panther beaver "
        "gorilla hedgehog badger raven pony antelope",
    ),
    # In titles of all genres.
    "": (
        "last first little great hard long lost new old broken bright other strange simple quiet "
        "blue green white big open",
        "day house road story night garden river door world window year town stranger morning "
        "winter daughter mirror song shadow game",
    ),
}


def genre_names(num_clusters: int) -> list[str]:
    """Names of the genres, one a cluster; `genre 12` and so on where words run out."""
    named = [name for name in WORDS if name][:num_clusters]
    return named + [f"genre {n:02d}" for n in range(len(named), num_clusters)]


def title_words(invented: np.ndarray) -> np.ndarray:
    """Words of titles, in place of invented ones as far as they reach.

    Args:
        invented: `[num_clusters + 1, words_per_cluster]`, as objects; the last row belongs to no
            cluster.

    Returns:
        The same shape. In a row, words that come first in a title stand before all others.
    """
    words, num = invented.copy(), invented.shape[1]
    for row, name in enumerate([*genre_names(len(words) - 1), ""]):
        first, last = (text.split() for text in WORDS.get(name, ("", "")))
        words[row, : num // 2][: len(first)] = first[: num // 2]
        words[row, num // 2 :][: len(last)] = last[: num - num // 2]
    return words
