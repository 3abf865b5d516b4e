"""A finished export on the Hugging Face Hub."""

from pathlib import Path

from huggingface_hub import HfApi

from unlearn.config.schema import reason
from unlearn.deploy.export.loading import ABOUT

THEIRS = {".gitattributes"}  # made by the hub


class UploadError(RuntimeError):
    """What could not be uploaded lies in its folder still."""


def upload(folder: Path, name: str, private: bool) -> str:
    """Upload a folder as the model repository ``name``; its address. What an older export there had beyond this one is
    removed; a repository with anything else is refused. ``UploadError`` says how to continue."""
    api = HfApi()
    try:
        address = str(api.create_repo(name, private=private, exist_ok=True))
        info = api.model_info(name)
        there = {file.rfilename for file in info.siblings or ()} - THEIRS
        if private and not info.private:
            raise UploadError(
                f"hub:{name}: is seen by all there, and private=true; private=false uploads it all the same"
            )
        if there and ABOUT not in there:
            instead = f"give another name: hf upload OWNER/NAME {folder}"
            raise UploadError(f"hub:{name}: holds something else than an export, {min(there)}; {instead}")
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload an export", delete_patterns="*")
    except UploadError:
        raise
    except Exception as error:  # of the library, of its own libraries, of the system: the export is whole in any case
        later = f"the export is whole, in {folder}; once `hf auth login` was done: hf upload {name} {folder}"
        raise UploadError(f"hub:{name}: not uploaded: {type(error).__name__}: {reason(error)}; {later}") from None
    return address
