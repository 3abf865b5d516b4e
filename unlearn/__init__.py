"""δ-Unlearning and its relatives, as grids of experiments."""

import importlib
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder

# ``python -m unlearn.VERB`` would look in the working directory first: a user's own evaluate.py or datasets/ would be
# imported for the library of that name, by this process and by those that it starts.
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if sys.argv[:1] == ["-m"] and sys.path and sys.path[0] == os.getcwd() != _HERE:
    del sys.path[0]
    os.environ["PYTHONSAFEPATH"] = "1"


class _Unlearned:
    """Lets transformers' auto classes know the model type ``unlearned`` (``ensemble/engines/``) by name.

    They find a class by its name in ``transformers.models.TYPE``, when one is asked for. The names are added as their
    modules are imported, and that module stands for ours: nothing is imported for it before.
    """

    CONFIGS, MODELS = "transformers.models.auto.configuration_auto", "transformers.models.auto.modeling_auto"
    ALIAS = "transformers.models.unlearned"

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == cls.ALIAS:
            return ModuleSpec(name, cls)
        spec = PathFinder.find_spec(name, path) if name in (cls.CONFIGS, cls.MODELS) else None
        if spec is not None:
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                cls.name_in(module)

            spec.loader.exec_module = exec_module
        return spec

    @staticmethod
    def create_module(spec):
        return None

    @staticmethod
    def exec_module(module):
        found = importlib.import_module("unlearn.ensemble.engines.modeling_unlearned")
        module.UnlearnedConfig, module.UnlearnedForCausalLM = found.UnlearnedConfig, found.UnlearnedForCausalLM

    @staticmethod
    def name_in(module):
        module.CONFIG_MAPPING_NAMES["unlearned"] = "UnlearnedConfig"
        if hasattr(module, "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"):
            module.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["unlearned"] = "UnlearnedForCausalLM"
            module.MODEL_FOR_CAUSAL_LM_MAPPING._reverse_config_mapping["UnlearnedConfig"] = "unlearned"


sys.meta_path.insert(0, _Unlearned)
for _name in (_Unlearned.CONFIGS, _Unlearned.MODELS):
    if _name in sys.modules:
        _Unlearned.name_in(sys.modules[_name])
