"""A finished export on the Hugging Face Hub."""

from pathlib import Path

from huggingface_hub import HfApi

from unlearn.deploy.export.loading import ABOUT

THEIRS = {".gitattributes"}  # made by the hub


class UploadError(RuntimeError):
    """What could not be uploaded lies in its folder still."""


def upload(folder: Path, name: str, private: bool) -> str:
    """Upload a folder as the model repository ``name``; its address. What an export that was there before had beyond
    this one is removed; a repository with anything else is refused.

    Raises ``UploadError``: the folder is whole, and the error says how to go on.
    """
    api = HfApi()
    try:
        address = str(api.create_repo(name, private=private, exist_ok=True))
        there = set(api.list_repo_files(name)) - THEIRS
        if there and ABOUT not in there:
            instead = f"give another name: hf upload OWNER/NAME {folder}"
            raise UploadError(f"hub:{name}: holds something else than an export, {min(there)}; {instead}")
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload an export", delete_patterns="*")
    except UploadError:
        raise
    except Exception as error:  # of the library, of its own libraries, of the system: the export is whole in any case
        why = (str(error).strip() or "no reason given").splitlines()[0]
        raise UploadError(
            f"hub:{name}: not uploaded: {type(error).__name__}: {why} (`hf auth login`, or HF_TOKEN, says who you "
            f"are); the export is whole, in {folder}; to upload it later: hf upload {name} {folder}"
        ) from None
    return address
