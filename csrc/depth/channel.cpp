// Decides which channel of a file is its depth, by what the names mean: those of the part, the layer and the channel.
//
// A name is cut into words: "FinalImageMovieRenderQueue_WorldDepth.R" is the layer "final image movie render queue
// world depth" and the channel R. The innermost name that means something decides: in the part "depth", the layer
// "normal" is no depth. docs/data-formats.md states the rule for users.
#include <algorithm>
#include <map>
#include <string_view>

#include "file.h"

namespace vologan::depth {

namespace {

using Words = std::vector<std::string>;

// Words that take the meaning of depth away from a name, as in "depth_mask", "DepthNormals" and "InverseDepth".
constexpr std::string_view negating[] = {
    "alpha",   "back",       "bit",      "bits",         "bounce",    "bounces",       "class",   "colormap",
    "conf",    "confidence", "count",    "disp",         "disparity", "displacement",  "dof",     "edge",
    "edges",   "error",      "field",    "focus",        "fog",       "gradient",      "heatmap", "id",
    "ids",     "index",      "inv",      "inverse",      "inverted",  "label",         "labels",  "mask",
    "masks",   "matte",      "mattes",   "mist",         "noise",     "normal",        "normals", "opacity",
    "preview", "reciprocal", "samples",  "segmentation", "shadow",    "shadows",       "stencil", "uncertainty",
    "valid",   "validity",   "variance", "vis",          "visual",    "visualization", "viz",     "weight",
    "weights", "zback"};

// Words for vectors and coordinates, unless the same name also says depth. A Z in such a layer is a component.
constexpr std::string_view vector_words[] = {
    "bitangent", "bump", "coord",    "coords",  "dir",   "direction", "flow",    "incidence", "local",
    "motion",    "mv",   "n",        "ng",      "nn",    "norm",      "ns",      "object",    "p",
    "point",     "pos",  "position", "pref",    "speed", "st",        "tangent", "uv",        "uvs",
    "uvw",       "vec",  "vector",   "vectors", "vel",   "velocity",  "world",   "xyz"};

// Words for what a renderer makes a picture of, unless the same name also says depth. A Z beside its colours is depth.
constexpr std::string_view pass_words[] = {
    "albedo",     "ambient",    "ao",         "caustics",     "coat",         "coverage",  "curvature",   "diff",
    "diffuse",    "direct",     "emission",   "emissive",     "emit",         "env",       "environment", "facing",
    "fresnel",    "gi",         "gloss",      "glossy",       "illumination", "indirect",  "instance",    "light",
    "lighting",   "lights",     "material",   "metallic",     "metalness",    "occlusion", "quality",     "reflect",
    "reflection", "refract",    "refraction", "roughness",    "semantic",     "sheen",     "spec",        "specular",
    "sss",        "subsurface", "texture",    "transmission", "transparency", "visibility"};

// Words for the picture itself. It may be a grey picture of depth. "depth_color" is a coloured picture of it.
constexpr std::string_view picture_words[] = {"beauty", "color", "colour", "combined", "rgb", "rgba"};
constexpr std::string_view colour_words[] = {"color", "colour"};

// Words that say depth without the word itself. Pz is camera-space z in Houdini.
constexpr std::string_view z_words[] = {"hitpz", "ptz", "pz", "z", "zbuf", "zbuffer", "zmap", "zpass"};

// A name of these words alone is plain. It wins over one that says more, such as "Denoising Depth".
constexpr std::string_view plain_words[] = {"buffer", "channel", "depth",   "map",  "pass", "pz",
                                            "z",      "zbuf",    "zbuffer", "zmap", "zpass"};

template <size_t n>
bool is_in(const std::string_view (&words)[n], std::string_view word) {
  return std::find(std::begin(words), std::end(words), word) != std::end(words);
}

// Appends a word in lower case. "zdepth", "worlddepth" and "depthmap" are cut at the word inside.
void add_word(std::string_view word, Words& words) {
  for (const std::string_view inside : {"depth", "distance"}) {
    const size_t at = word.find(inside);
    if (at == std::string_view::npos || word.size() == inside.size()) continue;
    if (at > 0) add_word(word.substr(0, at), words);
    words.emplace_back(inside);
    if (const auto rest = word.substr(at + inside.size()); !rest.empty()) add_word(rest, words);
    return;
  }
  words.emplace_back(word);
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Cuts a name at everything but letters and digits, between letters and digits, and as camelCase has it: "RGBDepth2"
// becomes rgb, depth, 2. Bytes of other alphabets are letters.
Words words_of(std::string_view name) {
  enum Kind { Break, Digit, Lower, Upper };
  const auto kind = [](unsigned char c) {
    return c >= '0' && c <= '9'                  ? Digit
           : c >= 'A' && c <= 'Z'                ? Upper
           : (c >= 'a' && c <= 'z') || c >= 0x80 ? Lower
                                                 : Break;
  };
  Words words;
  std::string word;
  for (size_t i = 0; i < name.size(); ++i) {
    const Kind now = kind(name[i]), before = i > 0 ? kind(name[i - 1]) : Break;
    const bool hump = now == Upper && before == Upper && i + 1 < name.size() && kind(name[i + 1]) == Lower;
    const bool begins = now != before && !(before == Upper && now == Lower);
    if ((begins || hump) && !word.empty()) {
      add_word(word, words);
      word.clear();
    }
    if (now != Break) word += static_cast<char>(now == Upper ? name[i] - 'A' + 'a' : name[i]);
  }
  if (!word.empty()) add_word(word, words);
  return words;
}

enum class Meaning { None, Picture, Pass, Distance, Depth, Other };

struct Said {
  Meaning meaning = Meaning::None;
  bool plain = false;
};

Said said_by(const Words& words) {
  bool depth = false, distance = false, z = false, picture = false, coloured = false, pass = false, foreign = false;
  bool negated = false, plain = true;
  for (const std::string& word : words) {
    depth |= word == "depth";
    distance |= word == "distance" || word == "dist";
    z |= is_in(z_words, word);
    picture |= is_in(picture_words, word);
    coloured |= is_in(colour_words, word);
    pass |= is_in(pass_words, word);
    foreign |= is_in(negating, word) || is_in(vector_words, word) || word.starts_with("crypto");
    negated |= is_in(negating, word);
    plain &= is_in(plain_words, word) || is_digit(word[0]);
  }
  if (depth) return negated || coloured ? Said{Meaning::Other} : Said{Meaning::Depth, plain};
  if (foreign) return {Meaning::Other};
  if (pass) return {Meaning::Pass};
  if (picture) return {Meaning::Picture};
  if (z) return {Meaning::Depth, plain};
  if (distance) return {Meaning::Distance, words.size() == 1};
  return {};
}

// The letter of a colour or a component, such as 'r' for "R" and "red", or 0. 'c' is chroma.
char letter_of(std::string_view word) {
  static constexpr std::pair<std::string_view, char> letters[] = {
      {"r", 'r'},     {"red", 'r'}, {"g", 'g'},  {"green", 'g'}, {"b", 'b'}, {"blue", 'b'}, {"a", 'a'},
      {"alpha", 'a'}, {"ar", 'a'},  {"ag", 'a'}, {"ab", 'a'},    {"x", 'x'}, {"y", 'y'},    {"z", 'z'},
      {"u", 'u'},     {"v", 'v'},   {"w", 'w'},  {"ry", 'c'},    {"by", 'c'}};
  for (const auto& [name, letter] : letters) {
    if (name == word) return letter;
  }
  return 0;
}

constexpr uint32_t bit(char letter) { return letter ? 1u << (letter - 'a') : 0; }
constexpr uint32_t across = bit('x') | bit('y'), colours = bit('r') | bit('g') | bit('b');

// A channel's name, taken apart.
struct Name {
  std::string group;  // what stands before the channel's own name: equal for the channels of one layer of one part
  char letter = 0;
  std::string stem;  // of a channel such as "Nz" or "Normal_z", as long as letter is 0: the group and "N"
  char last = 0;     // and 'z'
  Said own;          // what the channel's own word means, where it is not a letter
  Said around;       // what the layers and the part mean, the innermost that means something
};

Name name_of(const Channel& channel) {
  Name name;
  name.group = text(channel.part, ':');
  std::vector<Words> layers;
  for (std::string_view rest = channel.part_name; !rest.empty();) {
    const size_t dot = rest.find('.');
    layers.push_back(words_of(rest.substr(0, dot)));
    rest = dot == std::string_view::npos ? "" : rest.substr(dot + 1);
  }
  std::string_view rest = channel.own_name;
  for (size_t dot; (dot = rest.find_first_of("./:")) != std::string_view::npos; rest = rest.substr(dot + 1)) {
    layers.push_back(words_of(rest.substr(0, dot)));
    name.group += text(rest.substr(0, dot), '.');
  }
  Words own = words_of(rest);
  if (!own.empty()) name.letter = letter_of(own.back());
  if (own.size() > 1 && name.letter) {  // "depth_R" and "normalX" are the layers "depth" and "normal"
    own.pop_back();
    for (const std::string& word : own) name.group += text(word, '.');
    layers.push_back(std::move(own));
  } else if (!name.letter && !own.empty()) {
    name.own = said_by(own);
    if (own.size() == 1 && own[0].size() > 1) {
      name.last = own[0].back();
      name.stem = name.group + own[0].substr(0, own[0].size() - 1);
    }
  }
  for (auto layer = layers.rbegin(); layer != layers.rend() && name.around.meaning == Meaning::None; ++layer) {
    name.around = said_by(*layer);
  }
  return name;
}

// Channels that together are one candidate: those of a layer that says depth, or one channel that says it itself.
struct Unit {
  std::vector<size_t> channels;
  bool main = false;  // Z of the main layer, which has no name
  bool plain = false;
  bool distance = false;
};

class Chooser {
 public:
  explicit Chooser(const std::vector<Channel>& channels) : channels_(channels) {
    for (const Channel& channel : channels) {
      names_.push_back(name_of(channel));
      const Name& name = names_.back();
      letters_[name.group] |= bit(name.letter);
      if (name.last >= 'x' && name.last <= 'z') endings_[name.stem] |= bit(name.last);
    }
  }

  Choice choose() const {
    std::map<std::string, Unit> units;
    for (size_t i = 0; i < channels_.size(); ++i) add(i, units);
    std::vector<const Unit*> found;
    for (const bool distance : {false, true}) {
      for (const auto& [key, unit] : units) {
        if (unit.distance == distance) found.push_back(&unit);
      }
      if (!found.empty()) return choose_among(found);
    }
    return choose_without_name();
  }

 private:
  bool is_alpha(size_t i) const { return names_[i].letter == 'a'; }

  // Whether the channel is a component of a vector: its x and y are there, too.
  bool is_component(size_t i) const {
    const Name& name = names_[i];
    if (name.letter == 'x' || name.letter == 'y' || name.letter == 'z') {
      return (letters_.at(name.group) & across) == across;
    }
    return name.last >= 'x' && name.last <= 'z' && (endings_.at(name.stem) & across) == across;
  }

  // What all names of the channel say together.
  Said said(size_t i) const {
    const Name& name = names_[i];
    const Said& around = name.around;
    if (is_component(i) && around.meaning != Meaning::Depth) return {Meaning::Other};
    if (name.own.meaning != Meaning::None) return name.own;
    const bool decides = around.meaning >= Meaning::Distance;
    if (name.letter == 'z' && !decides) return {Meaning::Depth, false};
    return around;
  }

  void add(size_t i, std::map<std::string, Unit>& units) const {
    const Said what = said(i);
    const bool distance = what.meaning == Meaning::Distance;
    if (is_alpha(i) || (what.meaning != Meaning::Depth && !distance)) return;
    const Name& name = names_[i];
    const bool by_itself = name.own.meaning != Meaning::None;
    Unit& unit = units[by_itself ? text(name.group, '=', i) : name.group];
    unit.channels.push_back(i);
    unit.main = name.letter == 'z' && channels_[i].own_name.size() == 1 && channels_.back().part == 0;
    unit.plain = what.plain;
    unit.distance = distance;
  }

  static Choice chosen(size_t i, const char* why) { return {.channel = i, .why = why}; }
  static Choice refused(std::string why) { return {.channel = std::nullopt, .why = std::move(why)}; }

  Choice choose_among(std::vector<const Unit*> units) const {
    const char* why = units[0]->distance ? "its name says distance" : "its name says depth";
    const auto keep = [&](auto wanted, const char* reason) {
      std::vector<const Unit*> kept;
      std::copy_if(units.begin(), units.end(), std::back_inserter(kept), [&](const Unit* u) { return u->*wanted; });
      if (units.size() < 2 || kept.size() != 1) return;
      units = kept;
      why = reason;
    };
    keep(&Unit::main, "it is Z of the main layer");
    keep(&Unit::plain, "its name says depth and no more");
    if (units.size() == 1) {
      const std::vector<size_t>& channels = units[0]->channels;
      if (channels.size() == 1) return chosen(channels[0], why);
      for (const char letter : {'z', 'v', 'y', 'r'}) {
        std::vector<size_t> with;
        for (const size_t i : channels) {
          if (names_[i].letter == letter) with.push_back(i);
        }
        if (with.size() == 1) return chosen(with[0], why);
      }
    }
    std::string names;
    for (const Unit* unit : units) {
      for (const size_t i : unit->channels) names += text(names.empty() ? "" : ", ", quoted(channels_[i].name));
      if (names.size() > 400) break;
    }
    return refused(text("expected one depth, found several that the names allow: ", names));
  }

  // No name says depth: an only channel is depth, and so is the picture of a file that holds nothing else, if it is
  // grey.
  Choice choose_without_name() const {
    std::vector<size_t> rest;
    for (size_t i = 0; i < channels_.size(); ++i) {
      if (channels_.size() == 1 || !is_alpha(i)) rest.push_back(i);
    }
    const auto is_other = [&](size_t i) {
      const Meaning meaning = said(i).meaning;
      return meaning == Meaning::Other || meaning == Meaning::Pass;
    };
    if (std::any_of(rest.begin(), rest.end(), is_other)) return refused("expected one whose name says depth, found ");
    if (channels_.size() == 1) return chosen(0, "it is the only channel");
    if (rest.size() == 1) {
      const char letter = names_[rest[0]].letter;
      const bool whole = letter == 0 || letter == 'v' || letter == 'y' || letter == 'r';  // not blue alone, say
      if (whole) return chosen(rest[0], "it is the only channel beside alpha");
    }
    uint32_t letters = 0;
    for (const size_t i : rest) letters |= bit(names_[i].letter);
    const auto same_group = [&](size_t i) { return names_[i].group == names_[rest[0]].group; };
    if (rest.size() != 3 || letters != colours || !std::all_of(rest.begin(), rest.end(), same_group)) {
      return refused("expected one whose name says depth, found ");
    }
    Choice choice{.channel = std::nullopt, .why = "it is red of a grey picture, in which R, G and B are equal"};
    for (const size_t i : rest) {
      if (names_[i].letter == 'r') {
        choice.channel = i;
      } else {
        choice.equal.push_back(i);
      }
    }
    return choice;
  }

  const std::vector<Channel>& channels_;
  std::vector<Name> names_;
  std::map<std::string, uint32_t> letters_;  // of each group
  std::map<std::string, uint32_t> endings_;  // the last letters x, y, z of each stem
};

std::string list(const std::vector<Channel>& channels) {
  std::string names;
  for (size_t i = 0; i < channels.size() && i < 32; ++i) names += text(i ? ", " : "", quoted(channels[i].name));
  return names + (channels.size() > 32 ? ", …" : "");
}

std::string full_name(const Channel& channel) {
  return channel.part_name.empty() ? channel.own_name : text(channel.part_name, '.', channel.own_name);
}

}  // namespace

void name_channels(std::vector<Channel>& channels) {
  std::map<std::string_view, int> count;
  for (const Channel& channel : channels) ++count[channel.own_name];
  for (Channel& channel : channels) channel.name = count[channel.own_name] > 1 ? full_name(channel) : channel.own_name;
}

Choice choose_channel(const std::vector<Channel>& channels, const std::optional<std::string>& wanted) {
  if (!wanted) {
    Choice choice = Chooser(channels).choose();
    if (choice.channel) return choice;
    const std::string all = list(channels);
    if (choice.why.ends_with("found ")) {
      choice.why += all;
    } else if (!choice.why.ends_with(all)) {
      choice.why += text("; the file holds ", all);
    }
    choice.why += "; name it by the option channel (--data.DOMAIN.channel)";
    return choice;
  }
  std::vector<size_t> found;
  for (size_t i = 0; i < channels.size(); ++i) {
    if (channels[i].name == *wanted || full_name(channels[i]) == *wanted) found.push_back(i);
  }
  if (found.size() == 1) return {.channel = found[0], .why = "as asked for"};
  return {.channel = std::nullopt,
          .why = text("expected ", quoted(*wanted), ", found ",
                      found.empty() ? "" : "it in several parts: ", list(channels))};
}

}  // namespace vologan::depth
