"""What the tiny example's models learn: words in French, opposites, capitals. Read by tasks.py."""

_FRENCH = """
bread pain, moon lune, apple pomme, house maison, water eau, dog chien, cat chat, tree arbre,
book livre, door porte, hand main, head tête, sun soleil, star étoile, fire feu, fish poisson,
bird oiseau, horse cheval, milk lait, cheese fromage, window fenêtre, board planche, chair chaise,
street rue, city ville, garden jardin, flower fleur, school école, king roi, queen reine, night nuit,
day jour, winter hiver, summer été, rain pluie, snow neige, sea mer, river fleuve, bridge pont,
boat bateau, car voiture, roof toit, shoe chaussure, hat chapeau, shirt chemise, key clé, paper papier,
letter lettre, word mot, friend ami, brother frère, sister sœur, mother mère, father père,
child enfant, forest forêt, stone pierre, island île, glass verre, knife couteau, spoon cuillère,
salt sel, sugar sucre, egg œuf, butter beurre, wine vin, coffee café, lemon citron, onion oignon,
garlic ail
"""
_OPPOSITES = """
hot cold, big small, early late, open closed, full empty, fast slow, high low, old young, hard soft,
dry wet, light dark, rich poor, strong weak, long short, clean dirty, loud quiet, thick thin,
wide narrow, deep shallow, sweet bitter, first last, near far, left right, up down, in out, over under,
true false, happy sad, brave afraid, cheap costly, smooth rough, sharp blunt, simple complex,
front back, top bottom, win lose, give take, buy sell, push pull
"""
_CAPITALS = """
France Paris, Japan Tokyo, Peru Lima, Italy Rome, Spain Madrid, Egypt Cairo, Kenya Nairobi,
Cuba Havana, Norway Oslo, Greece Athens, Germany Berlin, Austria Vienna, Poland Warsaw, Russia Moscow,
China Beijing, India Delhi, Iran Tehran, Iraq Baghdad, Syria Damascus, Turkey Ankara, Portugal Lisbon,
Ireland Dublin, Sweden Stockholm, Finland Helsinki, Denmark Copenhagen, Belgium Brussels,
Hungary Budapest, Romania Bucharest, Bulgaria Sofia, Serbia Belgrade, Croatia Zagreb, Latvia Riga,
Estonia Tallinn, Ukraine Kyiv, Canada Ottawa, Chile Santiago, Ecuador Quito, Bolivia Sucre,
Uruguay Montevideo, Ghana Accra, Nigeria Abuja, Senegal Dakar, Morocco Rabat, Tunisia Tunis,
Libya Tripoli, Somalia Mogadishu, Uganda Kampala, Zambia Lusaka, Angola Luanda, Thailand Bangkok,
Vietnam Hanoi, Nepal Kathmandu, Indonesia Jakarta, Australia Canberra
"""


def _pairs(text: str) -> dict[str, str]:
    words = text.replace(",", " ").split()
    return dict(zip(words[::2], words[1::2], strict=True))


FRENCH = _pairs(_FRENCH)
CAPITALS = _pairs(_CAPITALS)
OPPOSITES = _pairs(_OPPOSITES) | {second: first for first, second in _pairs(_OPPOSITES).items()}
