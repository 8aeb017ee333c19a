from vologan_fast.translation.foreign import load_foreign as load_foreign
from vologan_fast.translation.images import translate_image as translate_image
from vologan_fast.translation.translator import Translator as Translator
from vologan_fast.translation.translator import load as load
