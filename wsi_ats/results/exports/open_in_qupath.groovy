/*
 * Makes a QuPath project of the slides that were exported, with their drawn tiles, attention and tissue.
 *
 * In QuPath 0.4 or later: Automate > Script editor, open this file, Run. On the command line:
 * `QuPath script open_in_qupath.groovy`. The project is made in the folder `project` beside this file; open it
 * with File > Project > Open project. Slides that cannot be opened are named in the log, the others are added.
 */
import groovy.json.JsonSlurper
import java.awt.image.BufferedImage
import qupath.lib.images.servers.ImageServerProvider
import qupath.lib.io.PathIO
import qupath.lib.projects.Projects

def here = new File(@FOLDER@)  // the folder of the export; change this if it was moved

def folder = new File(here, 'project')
if (folder.exists() && folder.list().length > 0) {
    throw new IllegalStateException("${folder} is not empty; move it away, because QuPath may overwrite files in it")
}
folder.mkdirs()

def project = Projects.createProject(folder, BufferedImage.class)
new JsonSlurper().parse(new File(here, 'slides.json'), 'UTF-8').slides.each { slide ->
    def entry = null
    try {
        def uri = slide.path.contains('://') ? slide.path : new File(slide.path).toURI().toString()
        def support = ImageServerProvider.getPreferredUriImageSupport(BufferedImage.class, uri)
        if (support == null || support.getBuilders().isEmpty()) {
            println "${slide.name}: no reader of QuPath opens ${slide.path}"
            return
        }
        entry = project.addImage(support.getBuilders().get(0))
        entry.setImageName(slide.name)
        def data = entry.readImageData()
        ['.tissue', '.attention', ''].each { kind ->
            def file = new File(here, "${slide.name}${kind}.geojson")
            if (file.exists()) {
                data.getHierarchy().addObjects(PathIO.readObjects(file.toPath()))
            }
        }
        entry.saveImageData(data)
        data.getServer().close()
    } catch (Exception error) {
        println "${slide.name}: ${error}"
        if (entry != null) {
            project.removeImage(entry, true)
        }
    }
}
project.syncChanges()
println "Made ${new File(folder, 'project.qpproj')}"
