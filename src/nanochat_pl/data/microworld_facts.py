"""What is true in the microworld: about 700 facts of elementary science, and the sentences that state and ask them.

A `Relation` is one kind of fact ("chemical symbol of"), a table of subject -> object, and two sets of templates:
*statements*, which only pretraining documents use, and *question forms*, which only questions use. The generator
(`data/microworld.py`) keeps some (fact, form) pairs out of training; this file knows nothing of splits or of chance.

The tables hold textbook facts that do not change (no populations, no counts of moons). Where a second answer would be
true too ("a young eagle is a chick"), `also_true` names it, so that it is never offered as a wrong choice.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Relation:
    """One kind of fact, with every way this world has of stating it and of asking for it.

    Templates hold `{s}` for the subject and `{o}` for the object. The subject never opens a sentence: a word keeps one
    spelling, and so one token, wherever it stands.
    """

    name: str
    topic: str
    category: str
    grade: int
    facts: dict[str, str]
    """Subject -> object. The object is what a question asks for."""
    statements: tuple[str, ...]
    """Sentences of the pretraining documents. Subject before object, so that the object is *predicted* from it."""
    phrase: str
    """A noun phrase for the object ("the symbol of {s}"), used where a sentence must end in a choice letter."""
    forms: tuple[str, ...]
    """Questions without choices; each reads naturally both with and without a list of choices beneath it."""
    lecture: str
    subject: str = "natural science"
    also_true: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Objects that are also right for a subject, or too near to it to be offered as wrong."""

    def distractors(self, subject: str) -> list[str]:
        """Return the objects of this relation that are wrong for `subject`, sorted, without repeats."""
        right = {self.facts[subject], *self.also_true.get(subject, ())}
        return sorted(set(self.facts.values()) - right)


def _pairs(text: str) -> dict[str, str]:
    """Read `subject: object; subject: object`."""
    return dict(tuple(part.strip() for part in entry.split(":")) for entry in text.split(";"))  # type: ignore[misc]


def _groups(text: str) -> dict[str, str]:
    """Read `object = subject, subject; object = ...`."""
    table: dict[str, str] = {}
    for entry in text.split(";"):
        value, subjects = entry.split("=")
        table |= {subject.strip(): value.strip() for subject in subjects.split(",")}
    return table


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# ---- chemistry -----------------------------------------------------------------------------------------------------
# name, symbol, atomic number
_ELEMENTS = """hydrogen H 1, helium He 2, lithium Li 3, beryllium Be 4, boron B 5, carbon C 6, nitrogen N 7, oxygen O 8,
fluorine F 9, neon Ne 10, sodium Na 11, magnesium Mg 12, aluminum Al 13, silicon Si 14, phosphorus P 15, sulfur S 16,
chlorine Cl 17, argon Ar 18, potassium K 19, calcium Ca 20, scandium Sc 21, titanium Ti 22, vanadium V 23, chromium
Cr 24,
manganese Mn 25, iron Fe 26, cobalt Co 27, nickel Ni 28, copper Cu 29, zinc Zn 30, gallium Ga 31, germanium Ge 32,
arsenic As 33, selenium Se 34, bromine Br 35, krypton Kr 36, rubidium Rb 37, strontium Sr 38, yttrium Y 39, zirconium
Zr 40,
niobium Nb 41, molybdenum Mo 42, ruthenium Ru 44, rhodium Rh 45, palladium Pd 46, silver Ag 47, cadmium Cd 48, indium
In 49,
tin Sn 50, antimony Sb 51, tellurium Te 52, iodine I 53, xenon Xe 54, cesium Cs 55, barium Ba 56, tungsten W 74,
platinum Pt 78, gold Au 79, mercury Hg 80, lead Pb 82, bismuth Bi 83, radon Rn 86, radium Ra 88, uranium U 92"""
_ROWS = [entry.split() for entry in _ELEMENTS.replace("\n", " ").split(",")]
# A symbol that is also a choice letter (B, C) would make "The correct answer is B" say two things.
_SYMBOLS = {name: symbol for name, symbol, _ in _ROWS if symbol not in "ABCDEF"}
# Asked from number to name, as the hardness of minerals is: an answer of digits would begin like every other one.
_NUMBERS = {number: name for name, _, number in _ROWS}

CHEMISTRY = (
    Relation(
        name="element symbol",
        topic="chemistry",
        category="Elements",
        grade=6,
        facts=_SYMBOLS,
        statements=(
            "The chemical symbol of {s} is {o}.",
            "The symbol for {s} is {o}.",
            "Chemists write {s} as {o}.",
            "The element {s} has the symbol {o}.",
            "In the periodic table {s} is shown as {o}.",
            "{o} is the symbol of {s}.",
        ),
        phrase="the symbol of {s}",
        forms=(
            "What is the chemical symbol of {s}?",
            "Which symbol stands for {s}?",
            "How do chemists write {s}?",
            "Find the symbol of the element {s}.",
            "How is {s} shown in the periodic table?",
            "Name the symbol for {s}.",
        ),
        lecture="Each element has a symbol of one or two letters.",
    ),
    Relation(
        name="atomic number",
        topic="chemistry",
        category="Elements",
        grade=8,
        facts=_NUMBERS,
        statements=(
            "The element with atomic number {s} is {o}.",
            "Number {s} in the periodic table is {o}.",
            "An atom with {s} protons is an atom of {o}.",
            "Exactly {s} protons make an atom of {o}.",
            "The atomic number {s} belongs to {o}.",
        ),
        phrase="the element with atomic number {s}",
        forms=(
            "Which element has the atomic number {s}?",
            "An atom with {s} protons is an atom of which element?",
            "Which element is number {s} in the periodic table?",
            "Find the element with atomic number {s}.",
            "To which element does the atomic number {s} belong?",
            "Name the element whose atoms have {s} protons.",
        ),
        lecture="The atomic number of an element is the number of protons in each of its atoms.",
    ),
    Relation(
        name="state at room temperature",
        topic="chemistry",
        category="States of matter",
        grade=5,
        facts=_groups(
            "gas = hydrogen, helium, nitrogen, oxygen, fluorine, neon, chlorine, argon, krypton, xenon, radon;"
            "liquid = bromine, mercury, water, olive oil, vinegar, milk, gasoline;"
            "solid = iron, gold, silver, copper, tin, lead, zinc, sulfur, iodine, silicon, glass, salt"
        ),
        statements=(
            "At room temperature {s} is a {o}.",
            "The state of {s} at room temperature is {o}.",
            "In a warm room {s} is found as a {o}.",
            "We know {s} as a {o}.",
        ),
        phrase="the state of {s}",
        forms=(
            "What is the state of {s} at room temperature?",
            "In which state is {s} found in a warm room?",
            "Which state of matter is {s} at room temperature?",
            "Name the state of {s} at room temperature.",
            "As which state of matter do we know {s}?",
            "What state does {s} have on a normal day?",
        ),
        lecture="Solid, liquid and gas are states of matter.",
    ),
    Relation(
        name="element family",
        topic="chemistry",
        category="Elements",
        grade=9,
        facts=_groups(
            "alkali metal = lithium, sodium, potassium, rubidium, cesium;"
            "alkaline earth metal = beryllium, magnesium, calcium, strontium, barium, radium;"
            "halogen = fluorine, chlorine, bromine, iodine;"
            "noble gas = helium, neon, argon, krypton, xenon, radon;"
            "transition metal = scandium, titanium, vanadium, chromium, manganese, iron, cobalt, nickel, copper,"
            "silver,"
            "gold, platinum, palladium, tungsten;"
            "metalloid = boron, silicon, germanium, arsenic, antimony, tellurium"
        ),
        statements=(
            "The family of {s} is called {o}.",
            "The element {s} belongs to the family {o}.",
            "Chemists class {s} as {o}.",
            "The kind of element that {s} is, is {o}.",
        ),
        phrase="the family of {s}",
        forms=(
            "To which family does {s} belong?",
            "What kind of element is {s}?",
            "How do chemists class {s}?",
            "What is the family of the element {s}?",
            "Name the family of {s}.",
            "Which family of elements includes {s}?",
        ),
        lecture="Elements of one family have similar properties.",
    ),
    Relation(
        name="chemical formula",
        topic="chemistry",
        category="Molecules",
        grade=8,
        facts=_pairs(
            "water: H2O; table salt: NaCl; carbon dioxide: CO2; carbon monoxide: CO; ammonia: NH3; methane: CH4;"
            "ozone: O3; hydrogen peroxide: H2O2; quartz: SiO2; rust: Fe2O3; nitrous oxide: N2O; sulfur dioxide: SO2;"
            "propane: C3H8; ethanol: C2H6O"
        ),
        statements=(
            "The chemical formula of {s} is {o}.",
            "The formula for {s} is {o}.",
            "Chemists write the compound {s} as {o}.",
            "The substance {s} has the formula {o}.",
        ),
        phrase="the formula of {s}",
        forms=(
            "What is the chemical formula of {s}?",
            "Which formula stands for {s}?",
            "How do chemists write the compound {s}?",
            "Find the formula of {s}.",
            "Name the formula for {s}.",
            "What formula does the substance {s} have?",
        ),
        lecture="A formula says which atoms a substance is made of, and how many of each.",
    ),
    Relation(
        name="conductor or insulator",
        topic="physics",
        category="Materials",
        grade=4,
        facts=_groups(
            "conductor = copper, silver, gold, aluminum, iron, brass, steel, bronze, graphite;"
            "insulator = rubber, glass, plastic, wood, wool, paper, porcelain, cotton, wax"
        ),
        statements=(
            "For electricity {s} is a good {o}.",
            "In an electric circuit {s} acts as a {o}.",
            "As a material {s} is known as a {o}.",
            "The electric property of {s} is that of a {o}.",
        ),
        phrase="the electric property of {s}",
        forms=(
            "Is {s} a conductor or an insulator?",
            "How does {s} act in an electric circuit?",
            "What is {s} for electricity?",
            "Name the electric property of {s}.",
            "What kind of electric material is {s}?",
            "What do electricians call {s}?",
        ),
        lecture="A conductor lets electric current flow; an insulator does not.",
    ),
)

# ---- animals -------------------------------------------------------------------------------------------------------
ANIMALS = (
    Relation(
        name="animal class",
        topic="biology",
        category="Classification",
        grade=3,
        facts=_groups(
            "mammal = dog, cat, cow, horse, sheep, goat, pig, lion, tiger, bear, wolf, fox, deer, rabbit, mouse,"
            "bat, whale,"
            "dolphin, seal, elephant, kangaroo, monkey, camel, giraffe, zebra;"
            "bird = hen, duck, goose, swan, owl, eagle, hawk, penguin, ostrich, parrot, crow, pigeon, flamingo, robin;"
            "reptile = snake, lizard, turtle, crocodile, alligator, gecko, iguana, chameleon;"
            "amphibian = frog, toad, newt, salamander;"
            "fish = salmon, shark, trout, tuna, cod, eel, goldfish, seahorse;"
            "insect = ant, bee, butterfly, beetle, mosquito, grasshopper, moth, dragonfly, cricket;"
            "arachnid = spider, scorpion, tick, mite;"
            "crustacean = crab, lobster, shrimp;"
            "mollusk = snail, octopus, squid, clam"
        ),
        statements=(
            "The animal class of the {s} is {o}.",
            "Among animals the {s} is classed as {o}.",
            "The {s} belongs to the class {o}.",
            "Scientists call the {s} a kind of {o}.",
        ),
        phrase="the class of the {s}",
        forms=(
            "To which class of animals does the {s} belong?",
            "What kind of animal is the {s}?",
            "How do scientists class the {s}?",
            "Name the animal class of the {s}.",
            "Which class includes the {s}?",
            "What is the class of the {s}?",
        ),
        lecture="Scientists sort animals into classes by the features they share.",
    ),
    Relation(
        name="young animal",
        topic="biology",
        category="Life cycles",
        grade=2,
        facts=_pairs(
            "dog: puppy; cat: kitten; cow: calf; horse: foal; sheep: lamb; goat: kid; pig: piglet; lion: cub;"
            "bear: cub;"
            "tiger: cub; wolf: pup; deer: fawn; kangaroo: joey; hen: chick; duck: duckling; goose: gosling;"
            "swan: cygnet;"
            "owl: owlet; eagle: eaglet; frog: tadpole; toad: tadpole; butterfly: caterpillar; seal: pup;"
            "elephant: calf;"
            "whale: calf; giraffe: calf; zebra: foal; bat: pup; spider: spiderling; eel: elver; pigeon: squab;"
            "hare: leveret;"
            "salmon: fry"
        ),
        statements=(
            "A young {s} is called a {o}.",
            "The young of the {s} is the {o}.",
            "The baby of a {s} is named {o}.",
            "When it is young, a {s} is a {o}.",
        ),
        phrase="the young of the {s}",
        forms=(
            "What is a young {s} called?",
            "What is the name for the baby of a {s}?",
            "Name the young of the {s}.",
            "What do we call a {s} when it is young?",
            "Which word means a baby {s}?",
            "What is the young of the {s}?",
        ),
        lecture="Many young animals have a name of their own.",
        also_true={
            "dog": ("pup",),
            "wolf": ("cub", "puppy"),
            "owl": ("chick",),
            "eagle": ("chick",),
            "duck": ("chick",),
            "goose": ("chick",),
            "swan": ("chick",),
            "pigeon": ("chick",),
            "whale": ("cub", "pup"),
            "seal": ("cub", "puppy"),
        },
    ),
    Relation(
        name="animal sound",
        topic="biology",
        category="Animal behavior",
        grade=1,
        facts=_pairs(
            "dog: bark; cat: meow; cow: moo; horse: neigh; sheep: bleat; pig: oink; lion: roar; wolf: howl; owl: hoot;"
            "duck: quack; frog: croak; snake: hiss; bee: buzz; crow: caw; hen: cluck; mouse: squeak; elephant: trumpet;"
            "donkey: bray; goose: honk; pigeon: coo; cricket: chirp; bear: growl; turkey: gobble"
        ),
        statements=(
            "The sound of the {s} is a {o}.",
            "The {s} makes a sound called {o}.",
            "The call of the {s} is the {o}.",
            "When you hear the {s}, you hear a {o}.",
        ),
        phrase="the sound of the {s}",
        forms=(
            "What sound does the {s} make?",
            "What is the call of the {s}?",
            "Name the sound of the {s}.",
            "What do you hear when you hear the {s}?",
            "Which word means the sound of the {s}?",
            "What is the sound that the {s} makes?",
        ),
        lecture="Animals use sounds to call each other.",
        also_true={
            "dog": ("howl", "growl"),
            "lion": ("growl",),
            "wolf": ("bark", "growl"),
            "bear": ("roar",),
            "cat": ("hiss", "growl"),
            "goose": ("hiss",),
            "owl": ("hiss",),
            "elephant": ("roar",),
            "pig": ("squeak",),
            "hen": ("coo",),
            "turkey": ("cluck",),
        },
    ),
    Relation(
        name="diet",
        topic="biology",
        category="Ecosystems",
        grade=4,
        facts=_groups(
            "herbivore = cow, horse, sheep, goat, deer, rabbit, elephant, kangaroo, giraffe, zebra, camel, koala,"
            "bison, moose,"
            "beaver, gorilla;"
            "carnivore = lion, tiger, wolf, shark, eagle, hawk, owl, snake, crocodile, alligator, seal, spider,"
            "scorpion,"
            "leopard, cheetah, penguin;"
            "omnivore = bear, pig, hen, crow, raccoon, rat, badger, skunk, hedgehog, fox, ostrich, robin"
        ),
        statements=(
            "By its food the {s} is a {o}.",
            "In the food web the {s} is a {o}.",
            "The diet of the {s} is that of a {o}.",
            "The {s} eats like a {o}.",
        ),
        phrase="the diet of the {s}",
        forms=(
            "What is the {s} by its food?",
            "What kind of eater is the {s}?",
            "Which diet does the {s} have?",
            "Name the diet of the {s}.",
            "What is the {s} in the food web?",
            "How is the {s} classed by what it eats?",
        ),
        lecture="Herbivores eat plants, carnivores eat animals, omnivores eat both.",
    ),
    Relation(
        name="habitat",
        topic="biology",
        category="Ecosystems",
        grade=3,
        facts=_groups(
            "ocean = whale, dolphin, shark, octopus, squid, tuna, lobster, seahorse; desert = camel, roadrunner;"
            "savanna = lion, zebra, giraffe, cheetah, hyena; rainforest = gorilla, toucan, sloth, orangutan;"
            "tundra = reindeer, lemming; mountains = yak, snow leopard; prairie = bison, prairie dog;"
            "pond = frog, newt, goldfish"
        ),
        statements=(
            "The home of the {s} is the {o}.",
            "In nature the {s} lives in the {o}.",
            "You find the {s} in the {o}.",
            "The habitat of the {s} is the {o}.",
        ),
        phrase="the home of the {s}",
        forms=(
            "What is the home of the {s}?",
            "What is the habitat of the {s}?",
            "Name the habitat of the {s}.",
            "Where does the {s} live in nature?",
            "Where do you find the {s}?",
            "Which place is the home of the {s}?",
        ),
        lecture="A habitat is the place where an animal finds food, water and shelter.",
        also_true={
            "frog": ("rainforest",),
            "lion": ("prairie",),
            "zebra": ("prairie", "mountains"),
            "giraffe": ("prairie",),
            "cheetah": ("prairie", "desert"),
            "hyena": ("prairie", "desert"),
            "gorilla": ("mountains",),
            "camel": ("mountains",),
            "reindeer": ("mountains",),
            "roadrunner": ("prairie",),
            "lemming": ("mountains",),
            "yak": ("tundra", "prairie"),
        },
    ),
)

# ---- physics, units, machines --------------------------------------------------------------------------------------
PHYSICS = (
    Relation(
        name="unit of a quantity",
        topic="units-and-measurement",
        category="Units",
        grade=7,
        facts=_pairs(
            "force: newton; energy: joule; power: watt; pressure: pascal; frequency: hertz; electric current: ampere;"
            "voltage: volt; electric charge: coulomb; electric resistance: ohm; length: meter; mass: kilogram;"
            "time: second;"
            "temperature: kelvin; brightness of light: candela; amount of substance: mole; capacitance: farad;"
            "radioactivity: becquerel; magnetic flux: weber; inductance: henry"
        ),
        statements=(
            "The SI unit of {s} is the {o}.",
            "Scientists measure {s} in the unit {o}.",
            "A value of {s} is given in the unit {o}.",
            "The unit for {s} is called {o}.",
        ),
        phrase="the unit of {s}",
        forms=(
            "What is the SI unit of {s}?",
            "In which unit do scientists measure {s}?",
            "Name the unit of {s}.",
            "Which unit belongs to {s}?",
            "In which unit is a value of {s} given?",
            "What is the unit for {s} called?",
        ),
        lecture="Scientists everywhere use the same units, those of the SI.",
    ),
    Relation(
        name="unit symbol",
        topic="units-and-measurement",
        category="Units",
        grade=7,
        facts=_pairs(
            "newton: N; joule: J; watt: W; pascal: Pa; hertz: Hz; volt: V; meter: m; kilogram: kg; second: s;"
            "kelvin: K;"
            "centimeter: cm; kilometer: km; millimeter: mm; milligram: mg; liter: L; candela: cd; mole: mol; henry: H"
        ),
        statements=(
            "The unit {s} is written {o}.",
            "The short form of the unit {s} is {o}.",
            "The unit {s} has the symbol {o}.",
            "For the unit {s} we write {o}.",
        ),
        phrase="the short form of the unit {s}",
        forms=(
            "How is the unit {s} written?",
            "What is the short form of the unit {s}?",
            "Name the symbol of the unit {s}.",
            "What do we write for the unit {s}?",
            "Which symbol does the unit {s} have?",
            "Find the short form for the unit {s}.",
        ),
        lecture="Each unit has a short symbol.",
    ),
    Relation(
        name="measuring instrument",
        topic="science-and-engineering-practices",
        category="Instruments",
        grade=4,
        facts=_pairs(
            "temperature: thermometer; air pressure: barometer; wind speed: anemometer; mass: balance; time: clock;"
            "length: ruler; earthquakes: seismograph; electric current: ammeter; voltage: voltmeter;"
            "direction: compass;"
            "humidity: hygrometer; angles: protractor; car speed: speedometer; rainfall: rain gauge;"
            "acidity: pH meter; force: spring scale; distance driven: odometer; height above sea: altimeter"
        ),
        statements=(
            "The instrument for {s} is the {o}.",
            "To measure {s} we use the {o}.",
            "The tool that shows {s} is the {o}.",
            "A student finds {s} with the {o}.",
        ),
        phrase="the instrument for {s}",
        forms=(
            "Which instrument measures {s}?",
            "What do we use to measure {s}?",
            "Name the instrument for {s}.",
            "Which tool shows {s}?",
            "With which tool does a student find {s}?",
            "What is the instrument for {s}?",
        ),
        lecture="Each kind of measurement has its instrument.",
    ),
    Relation(
        name="simple machine",
        topic="physics",
        category="Force and motion",
        grade=5,
        facts=_groups(
            "lever = seesaw, crowbar, bottle opener, wheelbarrow; inclined plane = ramp, slide;"
            "wedge = ax, knife, chisel; screw = jar lid, spiral drill; wheel and axle = doorknob, steering wheel;"
            "pulley = flagpole rope, crane hook"
        ),
        statements=(
            "As a simple machine the {s} is a {o}.",
            "The simple machine in the {s} is the {o}.",
            "The {s} works as a {o}.",
            "The {s} is an example of the {o}.",
        ),
        phrase="the simple machine in the {s}",
        forms=(
            "Which simple machine is the {s}?",
            "What is the simple machine in the {s}?",
            "As which simple machine does the {s} work?",
            "Name the simple machine of the {s}.",
            "Of which machine is the {s} an example?",
            "What type of simple machine is the {s}?",
        ),
        lecture="A simple machine changes the size or the direction of a force.",
        also_true={
            "doorknob": ("lever",),
            "steering wheel": ("lever",),
            "spiral drill": ("wedge", "inclined plane"),
            "jar lid": ("inclined plane",),
            "wheelbarrow": ("wheel and axle",),
        },
    ),
    Relation(
        name="change of state",
        topic="physics",
        category="States of matter",
        grade=5,
        facts=_pairs(
            "solid to liquid: melting; liquid to solid: freezing; liquid to gas: evaporation;"
            "gas to liquid: condensation;"
            "solid to gas: sublimation; gas to solid: deposition"
        ),
        statements=(
            "The change from {s} is called {o}.",
            "When matter goes from {s}, this is {o}.",
            "The name for the step from {s} is {o}.",
            "A change of state from {s} is {o}.",
        ),
        phrase="the change from {s}",
        forms=(
            "What is the change from {s} called?",
            "Name the change of state from {s}.",
            "What happens when matter goes from {s}?",
            "What is the name for the step from {s}?",
            "Which change of state goes from {s}?",
            "What do we call the change from {s}?",
        ),
        lecture="Matter changes its state when it is heated or cooled.",
    ),
)

# ---- earth, space, body --------------------------------------------------------------------------------------------
EARTH = (
    Relation(
        name="planet of a moon",
        topic="astronomy",
        category="Solar system",
        grade=6,
        facts=_groups(
            "Mars = Phobos, Deimos; Jupiter = Io, Europa, Ganymede, Callisto; Saturn = Titan, Rhea, Dione, Mimas,"
            "Enceladus,"
            "Iapetus; Uranus = Titania, Oberon, Miranda, Ariel, Umbriel; Neptune = Triton, Nereid, Proteus"
        ),
        statements=(
            "The moon {s} belongs to the planet {o}.",
            "The moon {s} moves around {o}.",
            "The planet of the moon {s} is {o}.",
            "In space the moon {s} circles {o}.",
        ),
        phrase="the planet of the moon {s}",
        forms=(
            "To which planet does the moon {s} belong?",
            "Around which planet does the moon {s} move?",
            "Name the planet of the moon {s}.",
            "Which planet does the moon {s} circle?",
            "What is the planet of the moon {s}?",
            "Which planet has the moon {s}?",
        ),
        lecture="A moon moves around a planet.",
    ),
    Relation(
        name="order of the planets",
        topic="astronomy",
        category="Solar system",
        grade=4,
        facts=_pairs(
            "Mercury: first; Venus: second; Earth: third; Mars: fourth; Jupiter: fifth; Saturn: sixth; Uranus: seventh;"
            "Neptune: eighth"
        ),
        statements=(
            "Counted from the Sun, the place of {s} is {o}.",
            "The place of {s} among the planets is {o}.",
            "In the order of the planets {s} comes {o}.",
            "Going out from the Sun we meet {s} as the {o}.",
        ),
        phrase="the place of {s} among the planets",
        forms=(
            "What is the place of {s} counted from the Sun?",
            "Where does {s} come in the order of the planets?",
            "Name the place of {s} among the planets.",
            "Which place among the planets does {s} have?",
            "Going out from the Sun, as which planet do we meet {s}?",
            "What is the place of {s} in the solar system?",
        ),
        lecture="Eight planets move around the Sun.",
    ),
    Relation(
        name="kind of planet",
        topic="astronomy",
        category="Solar system",
        grade=5,
        facts=_groups(
            "rocky planet = Mercury, Venus, Earth, Mars; gas giant = Jupiter, Saturn; ice giant = Uranus, Neptune;"
            "dwarf planet = Pluto, Ceres, Eris, Haumea, Makemake"
        ),
        statements=(
            "By its kind {s} is a {o}.",
            "Astronomers call {s} a {o}.",
            "In the solar system {s} counts as a {o}.",
            "The kind of world that {s} is, is a {o}.",
        ),
        phrase="the kind of world that {s} is",
        forms=(
            "What kind of world is {s}?",
            "What do astronomers call {s}?",
            "As what does {s} count in the solar system?",
            "Name the kind of planet that {s} is.",
            "Which kind of body is {s}?",
            "How is {s} classed by astronomers?",
        ),
        lecture="Planets differ in what they are made of.",
    ),
    Relation(
        name="type of rock",
        topic="earth-science",
        category="Rocks and minerals",
        grade=6,
        facts=_groups(
            "igneous = granite, basalt, obsidian, pumice, gabbro, rhyolite, andesite, diorite;"
            "sedimentary = sandstone, limestone, shale, chalk, conglomerate, mudstone, siltstone, coal;"
            "metamorphic = marble, slate, gneiss, schist, quartzite, phyllite"
        ),
        statements=(
            "The rock {s} is of the type {o}.",
            "The type of the rock {s} is {o}.",
            "Among rocks {s} is called {o}.",
            "Geologists say that {s} is {o}.",
        ),
        phrase="the type of the rock {s}",
        forms=(
            "What type of rock is {s}?",
            "Of which type is the rock {s}?",
            "What do geologists say that {s} is?",
            "Name the type of the rock {s}.",
            "How is {s} called among rocks?",
            "Which group of rocks does {s} belong to?",
        ),
        lecture="Igneous, sedimentary and metamorphic are the three types of rock.",
    ),
    Relation(
        name="mineral hardness",
        topic="earth-science",
        category="Rocks and minerals",
        grade=6,
        facts=_pairs(
            "1: talc; 2: gypsum; 3: calcite; 4: fluorite; 5: apatite; 6: feldspar; 7: quartz; 8: topaz; 9: corundum;"
            "10: diamond"
        ),
        statements=(
            "The mineral with hardness {s} on the Mohs scale is {o}.",
            "On the Mohs scale step {s} is {o}.",
            "The Mohs number {s} belongs to {o}.",
            "For hardness {s} geologists use the mineral {o}.",
        ),
        phrase="the mineral with Mohs number {s}",
        forms=(
            "Which mineral has the hardness {s} on the Mohs scale?",
            "To which mineral does the Mohs number {s} belong?",
            "Name the mineral with hardness {s}.",
            "Which mineral is step {s} on the Mohs scale?",
            "Which mineral do geologists use for hardness {s}?",
            "Find the mineral with Mohs number {s}.",
        ),
        lecture="The Mohs scale orders minerals from 1 (soft) to 10 (hard).",
    ),
    Relation(
        name="renewable or not",
        topic="earth-science",
        category="Natural resources",
        grade=4,
        facts=_groups(
            "renewable = sunlight, wind, tides, river power, wood, heat of the Earth, plant oil, biogas;"
            "nonrenewable = coal, crude oil, natural gas, uranium, copper ore, iron ore, peat, diesel fuel"
        ),
        statements=(
            "As a resource {s} is {o}.",
            "The resource {s} counts as {o}.",
            "Among resources {s} is listed as {o}.",
            "People call the resource {s} {o}.",
        ),
        phrase="the kind of the resource {s}",
        forms=(
            "Is the resource {s} renewable or nonrenewable?",
            "What is {s} as a resource?",
            "How is {s} listed among resources?",
            "As what does the resource {s} count?",
            "Name the kind of the resource {s}.",
            "What do people call the resource {s}?",
        ),
        lecture="A renewable resource grows or flows again within a human life.",
    ),
    Relation(
        name="organ system",
        topic="biology",
        category="Human body",
        grade=5,
        facts=_groups(
            "circulatory = heart, artery, vein; respiratory = lung, trachea, bronchus;"
            "digestive = stomach, small intestine, esophagus, colon; nervous = brain, spinal cord, nerve;"
            "urinary = kidney, bladder; skeletal = skull, rib, thigh bone; muscular = biceps, triceps;"
            "endocrine = thyroid, adrenal gland"
        ),
        statements=(
            "In the human body the {s} is part of the system called {o}.",
            "The body system of the {s} is {o}.",
            "The {s} works in the system called {o}.",
            "Doctors place the {s} in the system {o}.",
        ),
        phrase="the body system of the {s}",
        forms=(
            "To which body system does the {s} belong?",
            "What is the body system of the {s}?",
            "In which system do doctors place the {s}?",
            "Name the body system of the {s}.",
            "Of which system is the {s} a part?",
            "In which system of the body does the {s} work?",
        ),
        lecture="Organs that work together form a body system.",
    ),
)

GEOGRAPHY = (
    Relation(
        name="capital",
        topic="geography",
        category="Capitals",
        grade=5,
        subject="social science",
        facts=_pairs(
            "France: Paris; Germany: Berlin; Italy: Rome; Spain: Madrid; Portugal: Lisbon; Greece: Athens;"
            "Poland: Warsaw;"
            "Austria: Vienna; Hungary: Budapest; Sweden: Stockholm; Norway: Oslo; Denmark: Copenhagen;"
            "Finland: Helsinki;"
            "Ireland: Dublin; Russia: Moscow; Ukraine: Kyiv; Turkey: Ankara; Egypt: Cairo; Kenya: Nairobi;"
            "Japan: Tokyo;"
            "China: Beijing; Thailand: Bangkok; Vietnam: Hanoi; Cuba: Havana; Peru: Lima; Chile: Santiago;"
            "Canada: Ottawa;"
            "Iraq: Baghdad; Iran: Tehran; Nepal: Kathmandu; Belgium: Brussels; Bulgaria: Sofia; Romania: Bucharest;"
            "Croatia: Zagreb; Serbia: Belgrade; Iceland: Reykjavik; Ghana: Accra; Morocco: Rabat; Syria: Damascus;"
            "Lebanon: Beirut; Jordan: Amman; Australia: Canberra; Ecuador: Quito; Uruguay: Montevideo; Senegal: Dakar;"
            "Venezuela: Caracas"
        ),
        statements=(
            "The capital of {s} is {o}.",
            "The capital city of {s} is called {o}.",
            "The government of {s} sits in {o}.",
            "The country {s} has the capital {o}.",
            "{o} is the capital of {s}.",
        ),
        phrase="the capital of {s}",
        forms=(
            "What is the capital of {s}?",
            "Which city is the capital of {s}?",
            "In which city does the government of {s} sit?",
            "Name the capital city of {s}.",
            "Find the capital of the country {s}.",
            "What is the capital city of {s} called?",
        ),
        lecture="The capital is the city where the government of a country sits.",
    ),
    Relation(
        name="continent",
        topic="geography",
        category="Continents",
        grade=4,
        subject="social science",
        facts=_groups(
            "Europe = France, Germany, Italy, Spain, Portugal, Poland, Austria, Hungary, Sweden, Norway, Denmark,"
            "Finland,"
            "Ireland, Ukraine, Belgium, Bulgaria, Romania, Croatia; Asia = Japan, China, Thailand, Vietnam, Iraq,"
            "Iran, Nepal,"
            "Syria, Lebanon, Jordan; Africa = Kenya, Ghana, Morocco, Senegal; South America = Peru, Chile, Ecuador,"
            "Uruguay,"
            "Venezuela; North America = Canada, Cuba"
        ),
        statements=(
            "The country {s} lies in {o}.",
            "The continent of {s} is {o}.",
            "On the map {s} is part of {o}.",
            "A trip to {s} is a trip to {o}.",
        ),
        phrase="the continent of {s}",
        forms=(
            "On which continent does {s} lie?",
            "What is the continent of {s}?",
            "Name the continent of {s}.",
            "Which continent is {s} part of?",
            "To which continent does a trip to {s} go?",
            "Find the continent of the country {s}.",
        ),
        lecture="Continents are the large land masses of the Earth.",
    ),
)

RELATIONS: tuple[Relation, ...] = (*CHEMISTRY, *ANIMALS, *PHYSICS, *EARTH, *GEOGRAPHY)

# ---- words without facts: what invented passages and labelled lists are made of ------------------------------------
NAMES = _words(
    "Ada Ben Cleo Dan Emma Finn Gia Hugo Ivy Jack Kim Leo Mia Noah Olga Paul Rosa Sam Tess Umar Vera Will Yara Zoe"
)
THINGS = _words(
    "apple ball basket bell book bottle box brush bucket button cake candle chair coin cup desk door drum egg feather "
    "flag flute fork hammer hat jar key kite ladder lamp leaf map mask mirror nail needle orange paint pear pen pillow "
    "plate pot ribbon ring rope sail scarf shell shoe spoon star stone string table tent thread ticket towel toy tray "
    "wheel"
)
COLORS = _words("red blue green yellow black white brown pink purple gray")
PLACES = _words(
    "kitchen garden school barn library market harbor station tower bakery museum office park street cellar attic"
)
