//! Building and tagging the node image.

use super::{ACT_SECONDS, ASK_SECONDS, DockerEngine, fault};
use crate::{
    engine::{EngineError, Outcome},
    image::{self, Built, Program, REPOSITORY},
};
use bollard::{
    body_full,
    query_parameters::{
        BuildImageOptionsBuilder, ListImagesOptionsBuilder, RemoveImageOptions, TagImageOptionsBuilder,
    },
};
use fault::bounded;
use futures_util::StreamExt as _;
use std::{collections::HashMap, time::Duration};

/// Bound of a build: it moves one file of some MB, and the daemon may be busy.
const BUILD_SECONDS: u64 = 300;

impl DockerEngine {
    /// The image of this program, built only if there is none with its hash; tagged by the hash and by
    /// `tags`.
    ///
    /// # Errors
    /// If the daemon cannot build it, or does not answer.
    pub async fn ensure_image(&self, program: &Program, tags: &[&str]) -> Outcome<Built> {
        let reference = program.reference();
        let (id, built) = match self.image_id(&reference).await? {
            Some(id) => (id, false),
            None => {
                self.build(program, &reference).await?;
                let id = self.image_id(&reference).await?;
                (
                    id.ok_or_else(|| EngineError::NotFound(format!("the image {reference}, just built,")))?,
                    true,
                )
            }
        };
        for tag in tags {
            if self.image_id(&format!("{REPOSITORY}:{tag}")).await?.as_ref() != Some(&id) {
                let options = TagImageOptionsBuilder::new().repo(REPOSITORY).tag(tag).build();
                let what = format!("tagging the image as {tag}");
                bounded(&what, ACT_SECONDS, self.docker.tag_image(&reference, Some(options))).await?;
            }
        }
        Ok(Built { reference, id, built })
    }

    /// Whether the daemon has an image of this name. Nothing is pulled.
    ///
    /// # Errors
    /// If the daemon does not answer.
    pub async fn has_image(&self, reference: &str) -> Outcome<bool> {
        Ok(self.image_id(reference).await?.is_some())
    }

    /// `None` if there is no such image.
    pub(super) async fn image_id(&self, reference: &str) -> Outcome<Option<String>> {
        let what = format!("inspecting the image {reference}");
        let asked = bounded(&what, ASK_SECONDS, self.docker.inspect_image(reference)).await;
        Ok(fault::fine_if(asked.map(Some), fault::is_absent, None)?.and_then(|image| image.id))
    }

    /// Images that we tagged by their content and that have no other tag any more (a version, or `latest`):
    /// those of earlier programs.
    ///
    /// # Errors
    /// If the daemon does not answer.
    pub async fn old_images(&self) -> Outcome<Vec<String>> {
        let filters = HashMap::from([("reference", vec![REPOSITORY])]);
        let options = ListImagesOptionsBuilder::new().filters(&filters).build();
        let listed = bounded("listing images", ASK_SECONDS, self.docker.list_images(Some(options))).await?;
        let old = listed.into_iter().filter_map(|image| match image.repo_tags.as_slice() {
            [reference] if is_tagged_by_content(reference) => Some(reference.clone()),
            _ => None,
        });
        Ok(old.collect())
    }

    /// Removes [`DockerEngine::old_images`], except those that a container uses; the names of what was
    /// removed.
    ///
    /// # Errors
    /// If the daemon does not answer.
    pub async fn remove_old_images(&self) -> Outcome<Vec<String>> {
        let mut removed = Vec::new();
        for reference in self.old_images().await? {
            let what = format!("removing the image {reference}");
            // Not by force: one that a container uses stays.
            let removing = self.docker.remove_image(&reference, None::<RemoveImageOptions>, None);
            match bounded(&what, ACT_SECONDS, removing).await {
                Ok(_) => removed.push(reference),
                Err(error @ (EngineError::Timeout { .. } | EngineError::Unreachable { .. })) => {
                    return Err(error);
                }
                Err(error) => tracing::debug!(%error, "an old image stays"),
            }
        }
        Ok(removed)
    }

    async fn build(&self, program: &Program, reference: &str) -> Outcome<()> {
        let what = format!("building the image {reference}");
        let failed = |reason: String| EngineError::Failed { what: what.clone(), reason };
        let context = image::context(program).map_err(|error| failed(error.to_string()))?;
        let options = BuildImageOptionsBuilder::new().t(reference).rm(true).forcerm(true).build();
        let mut progress = self.docker.build_image(options, None, Some(body_full(context.into())));
        let building = async {
            while let Some(step) = progress.next().await {
                let step = step.map_err(|error| fault::from_daemon(&what, error))?;
                if let Some(error) = step.error_detail {
                    return Err(failed(error.message.unwrap_or_default()));
                }
            }
            Ok(())
        };
        tokio::time::timeout(Duration::from_secs(BUILD_SECONDS), building)
            .await
            .unwrap_or_else(|_| Err(EngineError::Timeout { what: what.clone(), seconds: BUILD_SECONDS }))
    }
}

/// Whether this is a name that only [`DockerEngine::ensure_image`] gives.
fn is_tagged_by_content(reference: &str) -> bool {
    let hash = reference.strip_prefix(REPOSITORY).and_then(|rest| rest.strip_prefix(':'));
    hash.is_some_and(|hash| hash.len() == 12 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::is_tagged_by_content;

    #[test]
    fn only_names_that_we_give_are_ours() {
        assert!(is_tagged_by_content("evenkeel:0123456789ab"));
        for other in
            ["evenkeel:latest", "evenkeel:0.1.0", "x/evenkeel:0123456789ab", "evenkeels:0123456789ab"]
        {
            assert!(!is_tagged_by_content(other), "{other}");
        }
    }
}
