"""The vocabulary and the tokenizer.

A token is a word or a punctuation mark. Its *piece* is the text it adds: a word brings its leading space
along unless it comes first, punctuation attaches to what stands before it, so the pieces of an answer
concatenate to the answer exactly.

Ids below `VOCABULARY_SIZE` can be produced by a model and are decoded; the ids above stand for everything
else that a prompt may contain. Such a piece is hashed, so that different prompts are different sequences of
ids.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

__all__ = [
    "END_OF_TEXT",
    "HASHED_IDS",
    "PUNCTUATION",
    "TOKENS",
    "TOTAL_IDS",
    "VOCABULARY_SIZE",
    "decode",
    "encode",
    "pieces",
]

_WORDS = """
a about above across after again against all almost alone along already also although always among an and
another any anyone anything are around as ask at away back be became because become been before began behind
being below beside between beyond both bring but by call came can come could day did do does done down
during each early either else end enough even ever every everyone everything far few finally find first for
forever forward found from full gave get give go gone good great had half has have he hear heard held help
her here herself high him himself his hold home how however if in inside instead into is it its just keep
kept knew know large last late later least leave left less let life like little long look lost low made make
many may me mean might mine more most much must my myself near nearly need never new next no nobody none nor
not nothing now of off often old on once one only onto open or other our out outside over own part past
perhaps place put quite rather ready real said same saw say see seem seen she should since small so some
someone something sometimes soon still such take tell than that the their them then there these they thing
think this those though thought through thus time to today together told too took toward turn two under
until up upon us use very want was way we well went were what when where which while who whole whose why
will with within without word work world would year yes yesterday yet you young your

acorn air alley amber anchor animal ankle answer apple apron arch arm armour arrow ash attic aunt autumn
avenue axe badger bag baker ball banjo bank barley barn basin basket bath beach bead bean bear beard bed bee
beetle bell belt bench berry bird blanket blossom boat body bone book boot bottle boulder bow bowl box boy
branch brass bread breath breeze brick bridge brook broom brother brush bucket button cabin cable cake camel
camera candle canyon cap captain carpet carriage cart castle cat cattle cave cedar ceiling cellar chain
chair chalk chapel chapter cheese cherry child chimney church circle city clay clerk cliff cloak clock cloth
cloud clover coach coal coast coat coffee coin colour comet compass copper coral corner cotton country
cousin cow cradle crane creek crew cricket crop cross crow crowd crown crystal cup curtain dance daughter
dawn deer desert desk dew diamond dinner dog donkey door dove dragon drawer dream dress drop drum duck dusk
dust eagle ear earth east echo edge egg elbow elder elm ember engine evening eye face falcon family farm
farmer father feast feather fence fern ferry field finger fire fish flag flame flask flax flock floor flour
flower flute fog forest fork fort fountain fox friend frog frost fruit galaxy game garden garlic gate ghost
giant ginger girl glacier glass glove goat gold goose grain grandmother grape grass gravel guest guitar hail
hall hammer hand harbour hare harp harvest hat hawk hay hazel heart heather hedge hen hill hive honey hood
hook horn horse hour house hunter hut ice ink inn iron island ivory ivy jar jasmine jewel journey judge
juice jungle kettle key king kitchen kite kitten knee knife knight knot ladder lake lamb lamp lane language
lantern lark laughter lawn leaf leather legend lemon letter library light lighthouse lightning lily linen
lion lizard loaf log lord magic mantle map maple marble market mask mast meadow meal melody metal midnight
mile milk mill mint mirror mist monk moon morning moss mother mountain mouse mouth music nail name neck
needle neighbour nest net night north nose novel oak oar oat ocean oil olive onion orchard otter oven owl ox
page painter palace palm paper parade parcel path peace peach pear pearl pebble pen people pepper piano
picture pigeon pillow pine pipe pirate plain planet plate plum pocket poem poet pond pony poppy porch port
potato pottery prairie prince promise puddle queen question quill rabbit rain rainbow raven reed reef ribbon
rice ring river road robin rock roof room root rope rose rug sail sailor salt sand saddle school sea season
secret seed shadow sheep shell shepherd ship shirt shoe shop shore shoulder silence silk silver sister sky
sleep sleeve smile smoke snail snow soap soldier song soup south spark sparrow spear spice spider spoon
spring squirrel stable stair star station steam steel stem stone storm story stove stranger straw stream
street string sugar summer sun sunset swallow swan sword table tailor tale teacher tea tent thistle thorn
thread throne thunder tide tiger timber tin tooth torch tower town trail train travel treasure tree trumpet
trunk tulip tunnel turtle twig uncle valley velvet village vine violin voice voyage wagon wall walnut water
wave wax weather weaver well west whale wheat wheel whisper wick widow willow wind window wine wing winter
wizard wolf woman wood wool yard

amused ancient angry awake bare bitter black blind blue bold bright brisk broad broken brown busy calm
careful cheap clean clear clever cold common cool crooked curious damp dark dear deep distant drowsy dry
dull eager easy empty equal fair faint faithful famous fast fierce fine firm flat fond foreign fragile free
fresh gentle glad golden grand green grey happy hard heavy hidden hollow holy honest humble hungry idle kind
lame lazy lean lively lonely loud lovely loyal merry mild modest narrow neat noble odd pale patient plump
polite poor proud pure quick quiet rare raw red rich ripe rough round royal rusty sacred sad safe secure
serious shallow sharp shy silent simple sleepy slender slow smooth soft solemn sour steady steep stern stiff
strange strong sudden sweet swift tall tame tender thick thin tidy tiny tired tough true vast warm weak
weary wet white wide wild wise wooden yellow

arrive bake bathe begin belong bend bless blow borrow bow break breathe build burn buy carry carve catch
chase choose climb close cook count cover crawl cry cut dare decide dig dive draw drift drink drive eat
enter explain fade fall feed feel fetch fight fill float flow fly fold follow forget forgive gather glow
grow guard guess hang hide hope hurry imagine invite join jump knock land laugh lead lean learn lend lie
lift listen live love march meet melt mend mix move notice obey offer paint pass pause pay play plant plough
point pour praise pray pull push raise reach read remember repair reply rest return ride rise roam roll row
run sail search sell send serve sew shake share shine shout show sing sink sit skip speak spend spin stand
stay steal step stir stop stretch sweep swim swing talk taste teach tear throw tie touch trade tremble try
turn understand visit wait wake walk wander wash watch wear weave weep wish wonder write

answer classify compare describe email explain fact feature help idea issue list model number order price
problem product review short summary ticket topic translate urgent user
"""

PUNCTUATION = (",", ".", ";", ":", "!", "?")

END_OF_TEXT = 0

TOKENS: tuple[str, ...] = ("", *PUNCTUATION, *dict.fromkeys(_WORDS.split()))
"""The text of every id a model can produce, without the leading space. The end of text has none."""

VOCABULARY_SIZE = len(TOKENS)

HASHED_IDS = 16384
TOTAL_IDS = VOCABULARY_SIZE + HASHED_IDS

_IDS = {token: index for index, token in enumerate(TOKENS) if token}
_FIRST_WORD = 1 + len(PUNCTUATION)

# Numbers are split into digits so that "ticket 17" and "ticket 18" differ in a token of their own.
_PIECE = re.compile(r" ?[^\W\d_]+| ?\d| ?[^\w\s]|\s|_")


def encode(text: str) -> list[int]:
    """The ids of a text. Whatever is not a vocabulary word in its place is one hashed id for each piece."""
    ids = []
    for match in _PIECE.finditer(text):
        piece = match.group()
        word = piece[1:] if piece[0] == " " else piece
        known = _IDS.get(word)
        # A word takes a space before it except at the start, punctuation never does: any other spacing is a
        # different text and has to become a different sequence of ids.
        spaced = piece[0] == " "
        if known is not None and spaced == (known >= _FIRST_WORD and match.start() > 0):
            ids.append(known)
        else:
            ids.append(VOCABULARY_SIZE + zlib.crc32(piece.encode("utf-8", "surrogatepass")) % HASHED_IDS)
    return ids


def piece(token: int, *, first: bool) -> str:
    """The text that a token adds to an answer."""
    return TOKENS[token] if first or token < _FIRST_WORD else " " + TOKENS[token]


def pieces(ids: Sequence[int]) -> list[str]:
    """The text of each token; joined, they are the text."""
    return [piece(token, first=index == 0) for index, token in enumerate(ids)]


def decode(ids: Sequence[int]) -> str:
    """The text of ids that a model produced."""
    return "".join(pieces(ids))
