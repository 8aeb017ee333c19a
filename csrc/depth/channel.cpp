// Decides which channel of a file is its depth, by what the names mean: those of the part, the layer and the channel.
//
// A name is cut into words: "FinalImageMovieRenderQueue_WorldDepth.R" is the layer "final image movie render queue
// world depth" and the channel R. The innermost name that means something decides: in the part "depth", the layer
// "normal" is no depth. A word that is in none of the lists below, such as the name of a product, changes nothing.
// docs/data-formats.md states the rule for users.
#include <algorithm>
#include <map>
#include <set>
#include <string_view>

#include "file.h"

namespace vologan::depth {

namespace {

using Words = std::vector<std::string>;

// Words for values about a depth, or made from one. They take the meaning of depth from all that is named inside: in
// the layer "variance", "depth.Z" is no depth.
constexpr std::string_view derived_words[] = {
    "alpha", "colormap", "conf",          "confidence",  "count",  "deviation", "disp",       "disparity",
    "dof",   "error",    "gradient",      "heatmap",     "inv",    "inverse",   "inverted",   "mask",
    "masks", "matte",    "mattes",        "preview",     "rcp",    "recip",     "reciprocal", "sigma",
    "std",   "stddev",   "stdev",         "uncertainty", "valid",  "validity",  "var",        "variance",
    "vis",   "visual",   "visualization", "viz",         "weight", "weights"};

// Words that do so within one name, as in "DepthBackfaces", "z_max" and "depth_jet". A view layer may have such a name.
constexpr std::string_view other_words[] = {
    "back",   "backface",  "backfaces", "behind",  "bit",          "bits",       "class",        "cmap",
    "coc",    "ddx",       "ddy",       "delta",   "derivative",   "difference", "displacement", "dx",
    "dy",     "edge",      "edges",     "exit",    "field",        "focal",      "focus",        "fog",
    "grad",   "i",         "id",        "ids",     "index",        "inferno",    "jet",          "label",
    "labels", "laplacian", "magma",     "max",     "maximum",      "min",        "minimum",      "mist",
    "noise",  "occluded",  "offield",   "opacity", "over",         "parallax",   "plasma",       "rainbow",
    "rear",   "residual",  "samples",   "second",  "segmentation", "signed",     "spectral",     "stencil",
    "sun",    "turbo",     "viridis",   "volume",  "zback"};

// Words for vectors and coordinates. A Z in such a layer is a component.
constexpr std::string_view vector_words[] = {
    "accel",   "acceleration", "bitangent", "bump",   "direction", "force",       "forward",
    "gravity", "incidence",    "mv",        "offset", "orient",    "orientation", "pworld",
    "quat",    "rotation",     "scale",     "speed",  "tangent",   "translate",   "translation",
    "uv",      "uvs",          "uvw",       "vec",    "vel",       "wp",          "xyz"};
// Such a word may begin or end with one of these, as "wposition" and "motionvector" do.
constexpr std::string_view vector_parts[] = {"motion", "normal",  "normals", "position",
                                             "vector", "vectors", "velocity"};
// It may end with one of these, as "wpos" and "viewdir" do.
constexpr std::string_view vector_ends[] = {"coord", "coords", "dir", "flow", "pos"};

// Words for the space or the subject of a vector, unless the same name also says depth: "WorldDepth" is depth, and
// "world.Z" is a component.
constexpr std::string_view space_words[] = {"local",  "n", "ng",    "nn",   "norm", "ns", "nx", "ny",   "nz",
                                            "object", "p", "point", "pref", "px",   "py", "st", "world"};

// Words for the pictures that a renderer makes, and for what it counts. A Z beside such colours is depth. With the word
// depth they mean another one: "DiffuseDepth" and "rayDepth" count bounces, "lightDepth" is seen from the light.
constexpr std::string_view pass_words[] = {
    "absorption",   "albedo",       "ambient",   "ao",           "atmosphere", "atmospheric", "bounce",     "bounces",
    "bvh",          "caustics",     "cloud",     "coat",         "coverage",   "curvature",   "custom",     "diff",
    "diffuse",      "direct",       "emission",  "emissive",     "emit",       "facing",      "fresnel",    "gi",
    "gloss",        "glossy",       "height",    "illumination", "indirect",   "instance",    "light",      "lighting",
    "lights",       "material",     "metallic",  "metalness",    "nesting",    "occlusion",   "octree",     "optical",
    "path",         "quality",      "ray",       "rays",         "recursion",  "reflect",     "reflection", "refr",
    "refract",      "refraction",   "roughness", "sample",       "scatter",    "semantic",    "shaded",     "sheen",
    "snow",         "spec",         "specular",  "sss",          "stack",      "subsurface",  "texture",    "trace",
    "transmission", "transparency", "tree",      "visibility",   "water"};

// Words for the picture itself. It may be a grey picture of depth. "depth_color" is a coloured picture of it, but
// "depth.rgba" only says how many channels there are.
constexpr std::string_view picture_words[] = {"beauty", "color", "colour", "combined", "rgb", "rgba"};
constexpr std::string_view format_words[] = {"rgb", "rgba"};

// Words that say depth without the word itself. Pz is camera-space z in Houdini.
constexpr std::string_view z_words[] = {"hitpz", "ptz", "pz", "z", "zbuf", "zbuffer", "zmap", "zpass"};

// A name of these words alone is plain. It wins over one that says more, such as "Denoising Depth".
constexpr std::string_view plain_words[] = {"buffer", "channel", "cm", "depth", "m",       "map",  "mm",
                                            "pass",   "pz",      "z",  "zbuf",  "zbuffer", "zmap", "zpass"};

template <size_t n>
bool is_in(const std::string_view (&words)[n], std::string_view word) {
  return std::find(std::begin(words), std::end(words), word) != std::end(words);
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Whether the word means a vector, such as "position", "wposition" and "motionvector".
bool is_vector(std::string_view word) {
  if (word == "composition" || word.starts_with("normaliz") || word.starts_with("normalis")) return false;
  const auto holds = [&](std::string_view part) { return word.starts_with(part) || word.ends_with(part); };
  const auto ends = [&](std::string_view end) { return word.ends_with(end); };
  if (std::any_of(std::begin(vector_ends), std::end(vector_ends), ends)) return true;
  return is_in(vector_words, word) || std::any_of(std::begin(vector_parts), std::end(vector_parts), holds);
}

// Appends a word in lower case. "zdepth", "worlddepth", "depthmap" and "hitdist" are cut at the word inside. "V-Ray",
// "DoF", "PathTracer" and "32bit" are one word.
void add_word(std::string_view word, Words& words) {
  for (const std::string_view inside : {"depth", "distance", "dist"}) {
    const size_t at = word.find(inside);
    if (at == std::string_view::npos || word.size() == inside.size()) continue;
    if (inside == "dist" && !word.ends_with(inside)) continue;  // "distribution"
    if (at > 0) add_word(word.substr(0, at), words);
    words.emplace_back(inside);
    if (const auto rest = word.substr(at + inside.size()); !rest.empty()) add_word(rest, words);
    return;
  }
  const std::string_view before = words.empty() ? "" : std::string_view(words.back());
  const bool joined = (before == "v" && word == "ray") || (before == "do" && word == "f") ||
                      (before == "path" && word == "tracer") ||
                      (!before.empty() && is_digit(before[0]) && (word == "bit" || word == "bits"));
  if (joined) {
    words.back() += word;
  } else {
    words.emplace_back(word);
  }
}

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

bool all_plain(const Words& words) {
  return std::ranges::all_of(words,
                             [](const std::string& word) { return is_in(plain_words, word) || is_digit(word[0]); });
}

// What the words of one name mean. In names of arrays, letters mean less: "q_z" is a part of a quaternion, and "dist"
// is the distortion of a lens.
Said said_by(const Words& words, bool arrays) {
  const auto any = [&](auto is) { return std::any_of(words.begin(), words.end(), is); };
  const auto any_in = [&](const auto& list) { return any([&](const std::string& word) { return is_in(list, word); }); };
  const auto any_is = [&](std::string_view wanted) {
    return any([&](const std::string& word) { return word == wanted; });
  };
  const bool plain = all_plain(words);
  const bool negated =
      any_in(derived_words) || any_in(other_words) || any(is_vector) ||
      any([](const std::string& word) { return word.starts_with("crypto") || word.starts_with("shadow"); });
  const bool coloured = any([](const std::string& word) {
    return (is_in(picture_words, word) && !is_in(format_words, word)) || word.starts_with("color") ||
           word.starts_with("colour");
  });
  if (any_is("depth") || (any_is("distance") && any_is("image") && any_is("plane"))) {
    return negated || coloured || any_in(pass_words) ? Said{Meaning::Other} : Said{Meaning::Depth, plain};
  }
  if (negated || any_in(space_words)) return {Meaning::Other};
  if (any_in(pass_words)) return {Meaning::Pass};
  if (any_in(picture_words)) return {Meaning::Picture};
  if (any_in(z_words) && (plain || !arrays)) return {Meaning::Depth, plain};
  if (any_is("distance") || (any_is("dist") && !arrays)) return {Meaning::Distance, words.size() == 1};
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
constexpr uint32_t colours = bit('r') | bit('g') | bit('b');

// A channel's name, taken apart.
struct Name {
  std::string group;  // what stands before the channel's own name: equal for the channels of one layer of one part
  char letter = 0;
  Said own;              // what the channel's own word means, where it is not a letter
  Said around;           // what the layers and the part mean, the innermost that means something
  bool direct = true;    // no other name stands between the one that decides and the letter
  bool derived = false;  // a name around it says that the values are about a depth
  bool bare = true;      // all names of the channel are plain
};

Name name_of(const Channel& channel, bool arrays) {
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
    const std::string_view layer = rest.substr(0, dot);
    layers.push_back(layer == "1" && rest[dot] == '/' ? Words{"inverse"} : words_of(layer));
    name.group += text(layer, '.');
  }
  Words own = words_of(rest);
  if (own.size() == 1 && is_digit(own[0][0]) && !layers.empty()) {  // "Normal.X.001" is X of a numbered layer
    name.group += text(own[0], '#');
    own = std::move(layers.back());
    layers.pop_back();
  }
  if (!own.empty() && !arrays) name.letter = letter_of(own.back());
  if (own.size() > 1 && name.letter) {  // "depth_R" and "normalX" are the layers "depth" and "normal"
    own.pop_back();
    for (const std::string& word : own) name.group += text(word, '.');
    layers.push_back(std::move(own));
  } else if (!name.letter && !own.empty()) {
    name.own = said_by(own, arrays);
    name.direct = name.own.meaning != Meaning::None;
    name.bare = all_plain(own);
  }
  bool decided = false;
  for (auto layer = layers.rbegin(); layer != layers.rend(); ++layer) {
    const auto all_in = [&](const auto& list) {
      return std::ranges::all_of(*layer, [&](const std::string& word) { return is_in(list, word); });
    };
    const auto is_derived = [](const std::string& word) {
      return is_in(derived_words, word) || word.starts_with("crypto");
    };
    name.bare &= all_plain(*layer);
    name.derived |= std::ranges::any_of(*layer, is_derived);
    if (decided) continue;
    const Said said = said_by(*layer, arrays);
    const bool picture = name.around.meaning == Meaning::Picture;  // a format, which a depth around it outweighs
    if (said.meaning == Meaning::None || (all_in(format_words) && !picture)) {
      name.direct &= all_plain(*layer);
      if (!picture) name.around = said;
    } else {
      if (!picture || said.meaning == Meaning::Depth) name.around = said;
      decided = true;
    }
  }
  return name;
}

std::string full_name(const Channel& channel) {
  return channel.part_name.empty() ? channel.own_name : text(channel.part_name, '.', channel.own_name);
}

// The full name in lower case.
std::string folded_name(const Channel& channel) {
  std::string name = full_name(channel);
  for (char& c : name) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return name;
}

// Channels that together are one candidate: those of a layer that says depth, or one channel that says it itself.
struct Unit {
  std::vector<size_t> channels;
  bool main = false;                                 // Z of the main layer, which has no name
  bool direct = false, plain = false, bare = false;  // see Name and Said
  bool distance = false;
};

class Chooser {
 public:
  Chooser(const std::vector<Channel>& channels, bool arrays) : channels_(channels) {
    for (const Channel& channel : channels) {
      names_.push_back(name_of(channel, arrays));
      folded_.insert(folded_name(channel));
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

  // Whether the channel is a component of a vector: with x and with y in the place of a z, its name is there, too. The
  // name of its part may have another z: "N.z" in the part "N.z". Z in a layer that says depth is none, because
  // compositors write depth as a vector, too.
  bool is_component(size_t i) const {
    const bool in_depth = names_[i].around.meaning == Meaning::Depth && names_[i].direct && names_[i].letter == 'z';
    const std::string name = folded_name(channels_[i]);
    std::vector<size_t> places;
    for (size_t at = name.size(); at-- > 0 && places.size() < 6;) {
      if (name[at] == 'z') places.push_back(at);
    }
    const auto has = [&](size_t a, size_t b, char letter) {
      std::string other = name;
      other[a] = other[b] = letter;
      return folded_.contains(other);
    };
    for (const size_t a : places) {
      for (const size_t b : places) {
        const bool own_letter = a == b && a == name.size() - 1;
        if (!(in_depth && own_letter) && has(a, b, 'x') && has(a, b, 'y')) return true;
      }
    }
    return false;
  }

  // What all names of the channel say together.
  Said said(size_t i) const {
    const Name& name = names_[i];
    const Said& around = name.around;
    if (name.derived || is_component(i)) return {Meaning::Other};
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
    unit.direct = name.direct;
    unit.plain = what.plain;
    unit.bare = name.bare;
    unit.distance = distance;
  }

  static Choice chosen(size_t i, const char* why) { return {.channel = i, .why = why}; }
  static Choice refused(std::string why) { return {.channel = std::nullopt, .why = std::move(why)}; }

  Choice choose_among(std::vector<const Unit*> units) const {
    const char* why = units[0]->distance ? "its name says distance" : "its name says depth";
    const auto keep = [&](auto wanted, const char* reason) {
      std::vector<const Unit*> kept;
      std::copy_if(units.begin(), units.end(), std::back_inserter(kept), [&](const Unit* u) { return u->*wanted; });
      if (kept.empty() || kept.size() == units.size()) return;
      units = kept;
      if (units.size() == 1) why = reason;
    };
    keep(&Unit::main, "it is Z of the main layer");
    keep(&Unit::direct, "its own name says depth, not only one around it");
    keep(&Unit::plain, "its name says depth and no more");
    keep(&Unit::bare, "its name says depth, without a layer around it");
    if (units.size() == 1) {
      const std::vector<size_t>& channels = units[0]->channels;
      if (channels.size() == 1) return chosen(channels[0], why);
      const auto with = [&](char letter) {
        std::vector<size_t> found;
        for (const size_t i : channels) {
          if (names_[i].letter == letter) found.push_back(i);
        }
        return found;
      };
      for (const char letter : {'z', 'v', 'y', 'r'}) {
        const bool flat = (letter == 'v' && !with('u').empty()) || (letter == 'y' && !with('x').empty());
        const bool colour = letter == 'y' && !with('c').empty();
        if (flat || colour) continue;  // a vector of two components, or luminance and chroma
        if (const auto found = with(letter); found.size() == 1) return chosen(found[0], why);
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
    if (channels_.size() == 1 && !is_alpha(0)) return chosen(0, "it is the only channel");
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
  std::set<std::string> folded_;
};

std::string list(const std::vector<Channel>& channels) {
  std::string names;
  for (size_t i = 0; i < channels.size() && i < 32; ++i) names += text(i ? ", " : "", quoted(channels[i].name));
  return names + (channels.size() > 32 ? ", …" : "");
}

// Adds the list of the channels and the option that decides to a refusal.
Choice explained(Choice choice, const std::vector<Channel>& channels) {
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

Choice find_wanted(const std::vector<Channel>& channels, const std::string& wanted) {
  std::vector<size_t> found;
  for (size_t i = 0; i < channels.size(); ++i) {
    if (channels[i].name == wanted || full_name(channels[i]) == wanted) found.push_back(i);
  }
  if (found.size() == 1) return {.channel = found[0], .why = "as asked for"};
  return {.channel = std::nullopt,
          .why = text("expected ", quoted(wanted), ", found ",
                      found.empty() ? "" : "it in several parts: ", list(channels))};
}

}  // namespace

void name_channels(std::vector<Channel>& channels) {
  std::map<std::string_view, int> count;
  for (const Channel& channel : channels) ++count[channel.own_name];
  for (Channel& channel : channels) channel.name = count[channel.own_name] > 1 ? full_name(channel) : channel.own_name;
}

Choice choose_channel(const std::vector<Channel>& channels, const std::optional<std::string>& wanted) {
  return wanted ? find_wanted(channels, *wanted) : explained(Chooser(channels, false).choose(), channels);
}

Choice choose_array(const std::vector<std::string>& names, const std::optional<std::string>& wanted) {
  std::vector<Channel> arrays;
  for (const std::string& name : names) arrays.push_back({.name = name, .type = SampleType::Float32, .own_name = name});
  return wanted ? find_wanted(arrays, *wanted) : explained(Chooser(arrays, true).choose(), arrays);
}

}  // namespace vologan::depth
